//! Sizes, durations and amounts of CPU as people write them: `64MiB`, `200ms`, `1.5s`, `500m`.
//!
//! All keep exact integers, print the shortest exact text and read back what they print.
//! A number without a unit is refused, since nobody can tell what it counts.

use std::fmt;
use std::str::FromStr;

/// Why a size or a duration was refused: what was found and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Does not start with a number.
    #[error("{found:?} is not {what}; write a number and a unit, such as {example}")]
    NoNumber {
        /// What was read.
        found: String,
        /// "a size", for example.
        what: &'static str,
        /// Good text.
        example: &'static str,
    },
    /// A number alone.
    #[error("{found:?} has no unit; add one of {units}, such as {example}")]
    NoUnit {
        /// What was read.
        found: String,
        /// All units.
        units: &'static str,
        /// Good text.
        example: &'static str,
    },
    /// A unit that does not exist.
    #[error("{found:?} has the unknown unit {unit:?}; use one of {units}, such as {example}")]
    UnknownUnit {
        /// What was read.
        found: String,
        /// The unit in it.
        unit: String,
        /// All units.
        units: &'static str,
        /// Good text.
        example: &'static str,
    },
    /// More digits after the point than the type can keep.
    #[error("{found:?} is not a whole number of {smallest}; use fewer digits after the point")]
    TooFine {
        /// What was read.
        found: String,
        /// The resolution.
        smallest: &'static str,
    },
    /// Does not fit.
    #[error("{found:?} is too large; at most {max} can be written")]
    TooLarge {
        /// What was read.
        found: String,
        /// The largest value of the type.
        max: &'static str,
    },
}

/// What distinguishes one kind of quantity from the other when it is read.
struct Grammar {
    what: &'static str,
    example: &'static str,
    /// For messages.
    unit_names: &'static str,
    smallest: &'static str,
    max: &'static str,
    /// Name and worth in the smallest unit.
    units: &'static [(&'static str, u64)],
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const SIZE: Grammar = Grammar {
    what: "a size",
    example: "\"64MiB\"",
    unit_names: "B, KiB, MiB, GiB, TiB, kB, MB, GB, TB",
    smallest: "bytes",
    max: "16777215TiB",
    units: &[
        ("B", 1),
        ("KiB", KIB),
        ("MiB", MIB),
        ("GiB", GIB),
        ("TiB", TIB),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ],
};

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const S: u64 = 1_000 * MS;
const M: u64 = 60 * S;
const H: u64 = 60 * M;

const TIME: Grammar = Grammar {
    what: "a duration",
    example: "\"200ms\"",
    unit_names: "ns, us, ms, s, m, h, d",
    smallest: "nanoseconds",
    max: "5124095h",
    units: &[
        ("ns", 1),
        ("us", US),
        ("ms", MS),
        ("s", S),
        ("m", M),
        ("h", H),
        ("d", 24 * H),
    ],
};

const CPU: Grammar = Grammar {
    what: "an amount of CPU",
    example: "\"500m\"",
    unit_names: "m (thousandths of a CPU), cpu",
    smallest: "thousandths of a CPU",
    max: "4294967cpu",
    units: &[("m", 1), ("cpu", 1_000)],
};

/// Reads `digits[.digits]unit` exactly, without a detour through floating point.
fn parse(text: &str, grammar: &Grammar) -> Result<u64, UnitError> {
    // Messages quote the text: keep hostile lengths out of them.
    let found = || shortened(text);
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction_is_odd = number.contains('.') && fraction.is_empty() || fraction.contains('.');
    if whole.is_empty() || fraction_is_odd {
        return Err(UnitError::NoNumber {
            found: found(),
            what: grammar.what,
            example: grammar.example,
        });
    }
    let unit = unit.trim_start();
    if unit.is_empty() {
        return Err(UnitError::NoUnit {
            found: found(),
            units: grammar.unit_names,
            example: grammar.example,
        });
    }
    let Some(&(_, worth)) = grammar.units.iter().find(|(name, _)| *name == unit) else {
        return Err(UnitError::UnknownUnit {
            found: found(),
            unit: shortened(unit),
            units: grammar.unit_names,
            example: grammar.example,
        });
    };
    let too_large = || UnitError::TooLarge {
        found: found(),
        max: grammar.max,
    };
    let worth = u128::from(worth);
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let mut total = whole.checked_mul(worth).ok_or_else(too_large)?;
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        let too_fine = || UnitError::TooFine {
            found: found(),
            smallest: grammar.smallest,
        };
        // The finest fraction that can come out whole has 40 binary places (TiB), hence 40 digits;
        // u128 holds 10^24 times the largest unit, and nobody needs more.
        let places = u32::try_from(fraction.len()).map_err(|_| too_fine())?;
        if places > 24 {
            return Err(too_fine());
        }
        let digits: u128 = fraction.parse().map_err(|_| too_fine())?;
        let scale = 10_u128.pow(places);
        let scaled = digits.checked_mul(worth).ok_or_else(too_fine)?;
        if scaled % scale != 0 {
            return Err(too_fine());
        }
        total = total.checked_add(scaled / scale).ok_or_else(too_large)?;
    }
    u64::try_from(total).map_err(|_| too_large())
}

fn shortened(text: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// Prints with the largest of `units` (ascending) that divides the value.
fn print(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)], zero: &str) -> fmt::Result {
    if value == 0 {
        return f.pad(zero);
    }
    let (name, worth) = units
        .iter()
        .rev()
        .find(|(_, worth)| value.is_multiple_of(*worth))
        .copied()
        .unwrap_or(("", 1));
    f.pad(&format!("{}{name}", value / worth))
}

macro_rules! text_serde {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A number of bytes, written as text: `64MiB`, `1.5kB`. Binary (`MiB`) and decimal (`MB`) units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n * KIB)
    }

    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n * MIB)
    }

    /// `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n * GIB)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes as a length in memory; saturates where addresses have 32 bits.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, &SIZE.units[..5], "0B")
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SIZE).map(Self)
    }
}

text_serde!(ByteSize);

/// A span of time with the resolution of a nanosecond, written as text: `200ms`, `1.5s`, `24h`.
/// At most 584 years.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration {
    nanos: u64,
}

impl Duration {
    /// `n` milliseconds.
    pub const fn from_millis(n: u64) -> Self {
        Self { nanos: n * MS }
    }

    /// `n` seconds.
    pub const fn from_secs(n: u64) -> Self {
        Self { nanos: n * S }
    }

    /// `n` hours.
    pub const fn from_hours(n: u64) -> Self {
        Self { nanos: n * H }
    }

    /// The same as the standard library's type.
    pub const fn get(self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.nanos)
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.get()
    }
}

impl From<std::time::Duration> for Duration {
    /// Saturates at 584 years.
    fn from(duration: std::time::Duration) -> Self {
        Self {
            nanos: u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days are read but not printed: `24h` stays `24h`.
        print(f, self.nanos, &TIME.units[..6], "0s")
    }
}

impl FromStr for Duration {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &TIME).map(|nanos| Self { nanos })
    }
}

text_serde!(Duration);

/// An amount of CPU in thousandths of one, written as text: `500m`, `1.5cpu`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuAmount {
    millis: u32,
}

impl CpuAmount {
    /// `n` thousandths of a CPU.
    pub const fn from_millis(millis: u32) -> Self {
        Self { millis }
    }

    /// Thousandths of a CPU.
    pub const fn millis(self) -> u32 {
        self.millis
    }
}

impl fmt::Display for CpuAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, u64::from(self.millis), CPU.units, "0m")
    }
}

impl FromStr for CpuAmount {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let millis = u32::try_from(parse(text, &CPU)?);
        let millis = millis.map_err(|_| UnitError::TooLarge {
            found: shortened(text),
            max: CPU.max,
        })?;
        Ok(Self { millis })
    }
}

text_serde!(CpuAmount);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_as_written() {
        for (text, bytes) in [
            ("0B", 0),
            ("1B", 1),
            ("64KiB", 65_536),
            ("64 MiB", 64 << 20),
            ("1.5KiB", 1_536),
            ("4GiB", 4 << 30),
            ("2TiB", 2 << 40),
            ("1kB", 1_000),
            ("2.5MB", 2_500_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn durations_read_as_written() {
        for (text, nanos) in [
            ("0s", 0),
            ("200ms", 200 * MS),
            ("1.5s", 1_500 * MS),
            ("5m", 5 * M),
            ("24h", 24 * H),
            ("1d", 24 * H),
            ("7us", 7 * US),
        ] {
            assert_eq!(text.parse(), Ok(Duration { nanos }), "{text}");
        }
    }

    #[test]
    fn amounts_of_cpu_read_as_written() {
        for (text, millis) in [("0m", 0), ("500m", 500), ("1.5cpu", 1_500), ("2cpu", 2_000)] {
            assert_eq!(text.parse(), Ok(CpuAmount { millis }), "{text}");
        }
        assert_eq!(CpuAmount::from_millis(1_500).to_string(), "1500m");
        assert_eq!(CpuAmount::from_millis(3_000).to_string(), "3cpu");
        let refused = |text: &str| text.parse::<CpuAmount>().unwrap_err().to_string();
        assert!(refused("2").contains("has no unit"));
        assert!(refused("99999999cpu").contains("too large"));
    }

    #[test]
    fn text_is_the_shortest_exact_one() {
        assert_eq!(ByteSize::mib(64).to_string(), "64MiB");
        assert_eq!(ByteSize(1_536).to_string(), "1536B");
        assert_eq!(ByteSize(0).to_string(), "0B");
        assert_eq!(Duration::from_millis(1_500).to_string(), "1500ms");
        assert_eq!(Duration::from_hours(24).to_string(), "24h");
        assert_eq!(Duration::from_secs(90).to_string(), "90s");
        assert_eq!(Duration::default().to_string(), "0s");
    }

    #[test]
    fn errors_say_what_was_found_and_what_to_write() {
        let size = |text: &str| text.parse::<ByteSize>().unwrap_err().to_string();
        assert_eq!(
            size("64"),
            "\"64\" has no unit; add one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB, such as \"64MiB\""
        );
        assert!(size("64M").contains("unknown unit \"M\""));
        assert!(size("much").contains("is not a size"));
        assert!(size("0.3B").contains("not a whole number of bytes"));
        assert!(size("99999999999TiB").contains("too large"));
        assert!(size("1..2B").contains("is not a size"));
        let time = |text: &str| text.parse::<Duration>().unwrap_err().to_string();
        assert!(time("-1s").contains("is not a duration"));
        assert!(time("1 minute").contains("unknown unit \"minute\""));
        assert!(time("0.0000000001s").contains("nanoseconds"));
    }

    #[test]
    fn serde_uses_the_text() {
        assert_eq!(
            serde_json::to_string(&ByteSize::kib(1)).unwrap(),
            "\"1KiB\""
        );
        assert_eq!(
            serde_json::from_str::<Duration>("\"2m\"").unwrap(),
            Duration::from_secs(120)
        );
        assert!(serde_json::from_str::<Duration>("\"2\"").is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(n: u64) {
            prop_assert_eq!(ByteSize(n).to_string().parse(), Ok(ByteSize(n)));
            let duration = Duration { nanos: n };
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
            prop_assert_eq!(Duration::from(duration.get()), duration);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}|[0-9.]{0,60}[a-zA-Z]{0,3}") {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<Duration>();
        }
    }
}
