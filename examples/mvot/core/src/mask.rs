//! Binary images: cleaning, components, counting in rectangles.

/// One value per pixel: set or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

/// A rectangle of pixels, the upper ends exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// Left edge.
    pub x0: i32,
    /// Top edge.
    pub y0: i32,
    /// One past the right edge.
    pub x1: i32,
    /// One past the bottom edge.
    pub y1: i32,
}

impl Rect {
    /// Pixels inside; none when an edge is on the wrong side.
    pub fn area(&self) -> i32 {
        (self.x1 - self.x0).max(0) * (self.y1 - self.y0).max(0)
    }

    /// What both have in common.
    pub fn intersect(&self, other: &Rect) -> Rect {
        Rect {
            x0: self.x0.max(other.x0),
            y0: self.y0.max(other.y0),
            x1: self.x1.min(other.x1),
            y1: self.y1.min(other.y1),
        }
    }
}

impl Mask {
    /// A mask with nothing set.
    pub fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            data: vec![0; width * height],
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

    /// 1 where set, 0 elsewhere.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The same, to change.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Whether a pixel is set.
    pub fn is_set(&self, x: usize, y: usize) -> bool {
        self.data[y * self.width + x] != 0
    }

    /// Pixels that are set.
    pub fn count(&self) -> usize {
        self.data.iter().filter(|value| **value != 0).count()
    }

    /// Keeps a pixel when at least `votes` of the 3 x 3 around it are set: specks go, pinholes close.
    pub fn majority(&self, votes: u8) -> Mask {
        let mut out = Mask::new(self.width, self.height);
        if self.width < 3 || self.height < 3 {
            return out;
        }
        let mut columns = vec![0u8; self.width];
        for y in 1..self.height - 1 {
            let above = &self.data[(y - 1) * self.width..y * self.width];
            let here = &self.data[y * self.width..(y + 1) * self.width];
            let below = &self.data[(y + 1) * self.width..(y + 2) * self.width];
            for (column, ((a, h), b)) in columns.iter_mut().zip(above.iter().zip(here).zip(below)) {
                *column = a + h + b;
            }
            let row = &mut out.data[y * self.width + 1..(y + 1) * self.width - 1];
            for (value, around) in row.iter_mut().zip(columns.windows(3)) {
                *value = u8::from(around[0] + around[1] + around[2] >= votes);
            }
        }
        out
    }

    /// Dilation, then erosion, by a rectangle of this reach on each side: gaps up to twice the reach close.
    pub fn close(&self, reach_x: usize, reach_y: usize) -> Mask {
        self.dilate(reach_x, reach_y).erode(reach_x, reach_y)
    }

    fn dilate(&self, reach_x: usize, reach_y: usize) -> Mask {
        self.along_rows(reach_x, |a, b| a | b)
            .along_columns(reach_y, |a, b| a | b)
    }

    fn erode(&self, reach_x: usize, reach_y: usize) -> Mask {
        self.along_rows(reach_x, |a, b| a & b)
            .along_columns(reach_y, |a, b| a & b)
    }

    /// Combines each pixel with those up to `reach` to its left and right.
    fn along_rows(&self, reach: usize, combine: impl Fn(u8, u8) -> u8) -> Mask {
        let mut out = self.clone();
        for (row, from) in out
            .data
            .chunks_exact_mut(self.width)
            .zip(self.data.chunks_exact(self.width))
        {
            for shift in (1..=reach).filter(|shift| *shift < from.len()) {
                row.iter_mut()
                    .zip(&from[shift..])
                    .for_each(|(value, other)| *value = combine(*value, *other));
                row[shift..]
                    .iter_mut()
                    .zip(from)
                    .for_each(|(value, other)| *value = combine(*value, *other));
            }
        }
        out
    }

    /// Combines each pixel with those up to `reach` above and below it.
    fn along_columns(&self, reach: usize, combine: impl Fn(u8, u8) -> u8) -> Mask {
        let mut out = self.clone();
        for shift in (1..=reach)
            .map(|rows| rows * self.width)
            .filter(|shift| *shift < self.data.len())
        {
            out.data
                .iter_mut()
                .zip(&self.data[shift..])
                .for_each(|(value, other)| *value = combine(*value, *other));
            out.data[shift..]
                .iter_mut()
                .zip(&self.data)
                .for_each(|(value, other)| *value = combine(*value, *other));
        }
        out
    }

    /// Connected sets of pixels (8 neighbours) of at least `min_area` pixels, in the order of their first pixel.
    pub fn components(&self, min_area: usize) -> Components {
        let mut labels = vec![0u32; self.data.len()];
        let mut found = Vec::new();
        let mut open = Vec::new();
        let mut next = 0;
        for start in 0..self.data.len() {
            if self.data[start] == 0 || labels[start] != 0 {
                continue;
            }
            next += 1;
            let mut component = Component {
                label: next,
                area: 0,
                bounds: Rect {
                    x0: i32::MAX,
                    y0: i32::MAX,
                    x1: 0,
                    y1: 0,
                },
            };
            labels[start] = next;
            open.push(start);
            while let Some(at) = open.pop() {
                let (x, y) = ((at % self.width) as i32, (at / self.width) as i32);
                component.area += 1;
                let b = &mut component.bounds;
                *b = Rect {
                    x0: b.x0.min(x),
                    y0: b.y0.min(y),
                    x1: b.x1.max(x + 1),
                    y1: b.y1.max(y + 1),
                };
                for ny in (y - 1).max(0)..(y + 2).min(self.height as i32) {
                    for nx in (x - 1).max(0)..(x + 2).min(self.width as i32) {
                        let neighbour = ny as usize * self.width + nx as usize;
                        if self.data[neighbour] != 0 && labels[neighbour] == 0 {
                            labels[neighbour] = next;
                            open.push(neighbour);
                        }
                    }
                }
            }
            if component.area >= min_area {
                found.push(component);
            }
        }
        Components {
            labels,
            width: self.width,
            found,
        }
    }
}

/// One connected set of pixels.
#[derive(Debug, Clone)]
pub struct Component {
    /// Its number among the labels, from 1.
    pub label: u32,
    /// Its pixels.
    pub area: usize,
    /// The smallest rectangle around it.
    pub bounds: Rect,
}

/// Components of a mask and which pixel belongs to which.
#[derive(Debug)]
pub struct Components {
    labels: Vec<u32>,
    width: usize,
    /// Those that are large enough.
    pub found: Vec<Component>,
}

impl Components {
    /// Label of the component that has this pixel; 0 for none.
    pub fn label(&self, x: i32, y: i32) -> u32 {
        self.labels[y as usize * self.width + x as usize]
    }
}

/// Sums over rectangles in constant time.
#[derive(Debug)]
pub struct Integral {
    window: Rect,
    stride: usize,
    sums: Vec<u32>,
}

impl Integral {
    /// Sums of `value` over the pixels of `window`.
    pub fn of(window: Rect, value: impl Fn(i32, i32) -> u32) -> Self {
        let stride = (window.x1 - window.x0).max(0) as usize + 1;
        let rows = (window.y1 - window.y0).max(0) as usize + 1;
        let mut sums = vec![0; stride * rows];
        for row in 1..rows {
            let mut sum = 0;
            for column in 1..stride {
                sum += value(window.x0 + column as i32 - 1, window.y0 + row as i32 - 1);
                sums[row * stride + column] = sums[(row - 1) * stride + column] + sum;
            }
        }
        Self {
            window,
            stride,
            sums,
        }
    }

    /// The sum over the part of `rect` inside the window.
    pub fn sum(&self, rect: Rect) -> u32 {
        let rect = rect.intersect(&self.window);
        if rect.x0 >= rect.x1 || rect.y0 >= rect.y1 {
            return 0;
        }
        let at = |x: i32, y: i32| {
            self.sums[(y - self.window.y0) as usize * self.stride + (x - self.window.x0) as usize]
        };
        at(rect.x1, rect.y1) + at(rect.x0, rect.y0) - at(rect.x0, rect.y1) - at(rect.x1, rect.y0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&str]) -> Mask {
        let mut mask = Mask::new(rows[0].len(), rows.len());
        for (y, row) in rows.iter().enumerate() {
            for (x, pixel) in row.bytes().enumerate() {
                mask.data_mut()[y * rows[0].len() + x] = u8::from(pixel == b'#');
            }
        }
        mask
    }

    #[test]
    fn majority_drops_specks_and_closes_pinholes() {
        let noisy = mask(&["#......", "..###..", "..#.#..", "..###..", "......#"]);
        let clean = noisy.majority(5);
        assert!(clean.is_set(3, 2) && !clean.is_set(0, 0) && !clean.is_set(6, 4));
    }

    #[test]
    fn closing_joins_what_is_close() {
        let halves = mask(&["........", ".##..##.", ".##..##.", "........"]);
        let closed = halves.close(1, 0);
        assert_eq!(closed.components(1).found.len(), 1);
        assert_eq!(halves.components(1).found.len(), 2);
        assert!(closed.is_set(3, 1) && !closed.is_set(3, 0));
    }

    #[test]
    fn components_have_areas_and_bounds_and_touch_at_corners() {
        let found = mask(&["#....", ".#...", "....#", "....#"])
            .components(2)
            .found;
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].area, found[0].bounds),
            (
                2,
                Rect {
                    x0: 0,
                    y0: 0,
                    x1: 2,
                    y1: 2
                }
            )
        );
        assert_eq!(
            (found[1].area, found[1].bounds),
            (
                2,
                Rect {
                    x0: 4,
                    y0: 2,
                    x1: 5,
                    y1: 4
                }
            )
        );
        assert!(mask(&["#....", ".....", "...##"]).components(2).found.len() == 1);
    }

    #[test]
    fn sums_over_rectangles_are_exact_also_partly_outside() {
        let window = Rect {
            x0: 2,
            y0: 3,
            x1: 7,
            y1: 9,
        };
        let integral = Integral::of(window, |x, y| (x * 10 + y) as u32);
        let rect = Rect {
            x0: 0,
            y0: 5,
            x1: 4,
            y1: 7,
        };
        let expected: i32 = (2..4).flat_map(|x| (5..7).map(move |y| x * 10 + y)).sum();
        assert_eq!(integral.sum(rect), expected as u32);
        assert_eq!(
            integral.sum(Rect {
                x0: 9,
                y0: 9,
                x1: 4,
                y1: 20
            }),
            0
        );
    }
}
