//! Colour images and their PNG form.

use std::io::Cursor;

/// Largest decoded frame in bytes: 8,000 x 5,000 RGB pixels.
const MAX_DECODED_BYTES: usize = 120_000_000;

/// Why an image could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The bytes are not a PNG that can be decoded.
    #[error("the image cannot be decoded as PNG: {0}")]
    Decode(#[from] png::DecodingError),
    /// Encoding failed.
    #[error("the image cannot be encoded as PNG: {0}")]
    Encode(#[from] png::EncodingError),
    /// More pixels than are allowed.
    #[error(
        "the image has {width} x {height} pixels, more than {MAX_DECODED_BYTES} bytes when decoded"
    )]
    TooLarge {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// Two images that belong together differ in size.
    #[error("images of one camera differ in size: {0:?} and {1:?} pixels")]
    SizesDiffer((usize, usize), (usize, usize)),
    /// No images where at least one is needed.
    #[error("there are no images")]
    Empty,
}

/// An RGB image of 8 bits a channel, row by row from the top left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl Image {
    /// A black image.
    pub fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            data: vec![0; width * height * 3],
        }
    }

    /// Pixels across.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels down.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width and height.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// Red, green and blue of each pixel.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The same, to change.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Decodes a PNG: gray, palette, RGB, with or without alpha (which is ignored), 8 or 16 bits.
    pub fn from_png(bytes: &[u8]) -> Result<Self, ImageError> {
        let limits = png::Limits {
            bytes: MAX_DECODED_BYTES,
        };
        let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        decoder.set_ignore_text_chunk(true);
        let mut reader = decoder.read_info()?;
        let (width, height) = reader.info().size();
        let too_large = ImageError::TooLarge { width, height };
        let size = match reader.output_buffer_size() {
            Some(size) if size <= MAX_DECODED_BYTES => size,
            _ => return Err(too_large),
        };
        if (width as usize)
            .checked_mul(height as usize * 3)
            .is_none_or(|bytes| bytes > MAX_DECODED_BYTES)
        {
            return Err(too_large);
        }
        let mut raw = vec![0; size];
        let frame = reader.next_frame(&mut raw)?;
        raw.truncate(frame.buffer_size());
        let data = match frame.color_type {
            png::ColorType::Rgb => raw,
            png::ColorType::Rgba => raw
                .chunks_exact(4)
                .flat_map(|p| [p[0], p[1], p[2]])
                .collect(),
            png::ColorType::GrayscaleAlpha => raw.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
            // A palette has been expanded by the transformation.
            png::ColorType::Grayscale | png::ColorType::Indexed => {
                raw.iter().flat_map(|gray| [*gray; 3]).collect()
            }
        };
        Ok(Self {
            width: width as usize,
            height: height as usize,
            data,
        })
    }

    /// Encodes as an RGB PNG, fast rather than small.
    pub fn to_png(&self) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.data)?;
        writer.finish()?;
        Ok(bytes)
    }

    /// The image at `1 / factor` of its size, each pixel the mean of a square of pixels.
    pub fn shrink(self, factor: usize) -> Self {
        if factor <= 1 || self.width < factor || self.height < factor {
            return self;
        }
        let (width, height) = (self.width / factor, self.height / factor);
        let count = (factor * factor) as u32;
        let mut small = Self::new(width, height);
        let mut sums = vec![0u32; width * 3];
        for (y, out) in small.data.chunks_exact_mut(width * 3).enumerate() {
            sums.fill(0);
            for row in self
                .data
                .chunks_exact(self.width * 3)
                .skip(y * factor)
                .take(factor)
            {
                for (square, sum) in row.chunks_exact(factor * 3).zip(sums.chunks_exact_mut(3)) {
                    for pixel in square.chunks_exact(3) {
                        sum[0] += u32::from(pixel[0]);
                        sum[1] += u32::from(pixel[1]);
                        sum[2] += u32::from(pixel[2]);
                    }
                }
            }
            for (out, sum) in out.iter_mut().zip(&sums) {
                *out = ((sum + count / 2) / count) as u8;
            }
        }
        small
    }
}

/// Widest image that detection works on; larger frames are shrunk by a whole factor.
const WORKING_WIDTH: usize = 640;

/// By how much a frame of this width is shrunk before detection.
pub fn working_factor(width: usize) -> usize {
    width.div_ceil(WORKING_WIDTH).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: usize, height: usize) -> Image {
        let mut image = Image::new(width, height);
        for (i, value) in image.data_mut().iter_mut().enumerate() {
            *value = (i * 7 % 251) as u8;
        }
        image
    }

    #[test]
    fn png_keeps_every_pixel() {
        let image = gradient(37, 21);
        assert_eq!(Image::from_png(&image.to_png().unwrap()).unwrap(), image);
    }

    #[test]
    fn gray_images_become_colour() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
        encoder.set_color(png::ColorType::Grayscale);
        encoder
            .write_header()
            .unwrap()
            .write_image_data(&[10, 200])
            .unwrap();
        assert_eq!(
            Image::from_png(&bytes).unwrap().data(),
            [10, 10, 10, 200, 200, 200]
        );
    }

    #[test]
    fn broken_bytes_are_an_error() {
        let png = gradient(30, 30).to_png().unwrap();
        for cut in [0, 1, 8, 20, 40, png.len() / 2] {
            assert!(Image::from_png(&png[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_header_with_a_huge_size_is_refused() {
        let mut png = gradient(4, 4).to_png().unwrap();
        png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        assert!(Image::from_png(&png).is_err());
    }

    #[test]
    fn shrinking_takes_means() {
        let mut image = Image::new(4, 2);
        image.data_mut()[..12].copy_from_slice(&[0, 0, 0, 100, 0, 0, 8, 8, 8, 8, 8, 8]);
        image.data_mut()[12..].copy_from_slice(&[0, 40, 0, 100, 0, 2, 8, 8, 8, 8, 8, 8]);
        let small = image.shrink(2);
        assert_eq!(
            (small.size(), small.data()),
            ((2, 1), &[50, 10, 1, 8, 8, 8][..])
        );
    }

    #[test]
    fn wide_frames_are_worked_on_smaller() {
        assert_eq!(
            [
                working_factor(480),
                working_factor(640),
                working_factor(1920)
            ],
            [1, 1, 3]
        );
    }
}
