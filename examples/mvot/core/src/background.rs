//! The empty scene of a camera, and what differs from it.

use crate::image::{Image, ImageError};
use crate::mask::Mask;

/// Smallest difference that counts, in levels of a channel.
const MIN_THRESHOLD: u32 = 16;
/// Largest threshold, in levels: noisier images are not worth more.
const MAX_THRESHOLD: u32 = 60;
/// The threshold in standard deviations of the noise.
const NOISE_FACTOR: f64 = 4.5;
/// Light that is left in a shadow at least, in percent; what is darker is somebody.
const DARKEST_SHADOW: u32 = 80;
/// Steps of a gain of 1, for counting.
const GAIN_STEPS: usize = 256;
/// Every how many pixels gain and noise are sampled.
const SAMPLE_STEP: usize = 7;

/// The median of each pixel over frames of one camera: whoever passes through is not in it.
pub fn median(frames: &[Image]) -> Result<Image, ImageError> {
    let first = frames.first().ok_or(ImageError::Empty)?;
    if let Some(other) = frames.iter().find(|frame| frame.size() != first.size()) {
        return Err(ImageError::SizesDiffer(first.size(), other.size()));
    }
    let mut background = Image::new(first.width(), first.height());
    let mut values = vec![0; frames.len()];
    let middle = frames.len() / 2;
    for (i, out) in background.data_mut().iter_mut().enumerate() {
        for (value, frame) in values.iter_mut().zip(frames) {
            *value = frame.data()[i];
        }
        *out = *values.select_nth_unstable(middle).1;
    }
    Ok(background)
}

/// Pixels of `frame` that differ from `background`, after allowing for a change of the light (one gain per
/// channel) and for the noise of the frame.
pub fn difference(frame: &Image, background: &Image) -> Result<Mask, ImageError> {
    if frame.size() != background.size() {
        return Err(ImageError::SizesDiffer(frame.size(), background.size()));
    }
    let tables = [0, 1, 2].map(|channel| gain_table(gain(frame, background, channel)));
    let threshold = threshold(frame, background, &tables);
    let mut mask = Mask::new(frame.width(), frame.height());
    let pixels = frame
        .data()
        .chunks_exact(3)
        .zip(background.data().chunks_exact(3));
    for (out, (f, b)) in mask.data_mut().iter_mut().zip(pixels) {
        let red = f[0].abs_diff(tables[0][b[0] as usize]);
        let green = f[1].abs_diff(tables[1][b[1] as usize]);
        let blue = f[2].abs_diff(tables[2][b[2] as usize]);
        let differs = u32::from(red.max(green).max(blue)) > threshold;
        *out = u8::from(
            differs
                && !is_shadow(
                    f,
                    [0, 1, 2].map(|channel| tables[channel][b[channel] as usize]),
                    threshold,
                ),
        );
    }
    Ok(mask)
}

/// Whether a pixel is the background in a faint shadow: all channels darker by about the same share.
fn is_shadow(frame: &[u8], background: [u8; 3], threshold: u32) -> bool {
    let sum = |levels: &[u8]| levels.iter().map(|level| u32::from(*level)).sum::<u32>();
    let (light, full) = (sum(frame), sum(&background));
    if light >= full || light * 100 < full * DARKEST_SHADOW {
        return false;
    }
    let near = |(level, full_level): (&u8, &u8)| {
        u32::from(*level).abs_diff(u32::from(*full_level) * light / full.max(1)) * 10
            <= threshold * 6
    };
    frame.iter().zip(&background).all(near)
}

/// The median of frame / background: how much brighter the light has become.
fn gain(frame: &Image, background: &Image, channel: usize) -> f64 {
    let mut counts = [0; 4 * GAIN_STEPS];
    let pairs = frame
        .data()
        .chunks_exact(3)
        .zip(background.data().chunks_exact(3))
        .step_by(SAMPLE_STEP);
    for (f, b) in pairs.map(|(f, b)| (usize::from(f[channel]), usize::from(b[channel]))) {
        // Neither nearly black nor blown out.
        if b >= 24 && f < 250 {
            counts[((f * GAIN_STEPS + b / 2) / b).min(4 * GAIN_STEPS - 1)] += 1;
        }
    }
    middle(&counts).map_or(1.0, |steps| steps / GAIN_STEPS as f64)
}

/// The median of whole numbers from how often each comes, between numbers by how far into one the middle lies.
fn middle(counts: &[u32]) -> Option<f64> {
    let total: u32 = counts.iter().sum();
    let mut below = 0;
    for (number, count) in counts.iter().enumerate() {
        if *count > 0 && (below + count) * 2 >= total {
            return Some(
                number as f64 - 0.5
                    + (f64::from(total) / 2.0 - f64::from(below)) / f64::from(*count),
            );
        }
        below += count;
    }
    None
}

fn gain_table(gain: f64) -> [u8; 256] {
    std::array::from_fn(|level| (level as f64 * gain).round().clamp(0.0, 255.0) as u8)
}

/// From the median difference, which belongs to the noise as long as people cover less than half.
fn threshold(frame: &Image, background: &Image, tables: &[[u8; 256]; 3]) -> u32 {
    let mut counts = [0; 256];
    for (f, b) in frame
        .data()
        .chunks_exact(3)
        .zip(background.data().chunks_exact(3))
        .step_by(SAMPLE_STEP)
    {
        for channel in 0..3 {
            counts[f[channel].abs_diff(tables[channel][b[channel] as usize]) as usize] += 1;
        }
    }
    let sigma = middle(&counts).unwrap_or(0.0).max(0.0) * 1.4826;
    ((sigma * NOISE_FACTOR) as u32).clamp(MIN_THRESHOLD, MAX_THRESHOLD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(level: u8) -> Image {
        let mut image = Image::new(20, 20);
        image.data_mut().fill(level);
        image
    }

    fn with_square(mut image: Image, level: u8) -> Image {
        for y in 5..9 {
            for x in 5..9 {
                image.data_mut()[(y * 20 + x) * 3 + 1] = level;
            }
        }
        image
    }

    #[test]
    fn who_passes_is_not_in_the_median() {
        let frames = [flat(100), with_square(flat(101), 255), flat(102)];
        assert!(
            median(&frames)
                .unwrap()
                .data()
                .iter()
                .all(|level| (101..=102).contains(level))
        );
        assert!(matches!(median(&[]), Err(ImageError::Empty)));
        assert!(median(&[flat(1), Image::new(3, 3)]).is_err());
    }

    #[test]
    fn the_middle_of_counts() {
        assert_eq!(middle(&[0, 0, 0]), None);
        assert_eq!(middle(&[0, 5]), Some(1.0));
        assert_eq!(middle(&[2, 2]), Some(0.5));
        assert_eq!(middle(&[1, 0, 0, 3]), Some(3.0 - 0.5 + 1.0 / 3.0));
    }

    #[test]
    fn a_faint_shadow_is_nobody() {
        let mut frame = flat(150);
        frame.data_mut()[..60].fill(126);
        assert_eq!(difference(&frame, &flat(150)).unwrap().count(), 0);
        frame.data_mut()[..60].fill(100);
        assert_eq!(difference(&frame, &flat(150)).unwrap().count(), 20);
    }

    #[test]
    fn a_change_of_light_is_no_difference_but_a_person_is() {
        let brighter = difference(&flat(130), &flat(100)).unwrap();
        assert_eq!(brighter.count(), 0);
        assert_eq!(
            difference(&with_square(flat(130), 170), &flat(100))
                .unwrap()
                .count(),
            16
        );
        let person = difference(&with_square(flat(130), 60), &flat(100)).unwrap();
        assert_eq!(person.count(), 16);
        assert!(person.is_set(6, 7) && !person.is_set(4, 7));
    }
}
