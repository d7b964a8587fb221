//! Whether a run fits into memory, asked before it begins.

use crate::Error;

/// # Errors
/// When `bytes` are more than the machine has to give; `what` says what needs them.
pub fn check(what: &str, bytes: f64) -> Result<(), Error> {
    match available() {
        Some(available) if bytes > available => Err(Error::invalid(format!(
            "{what} needs about {:.1} GiB of memory, {:.1} GiB are available",
            bytes / GIB,
            available / GIB
        ))),
        _ => Ok(()),
    }
}

const GIB: f64 = (1_u64 << 30) as f64;

/// Bytes that can be had without swapping; none where the system does not say.
fn available() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_is_refused_with_both_numbers() {
        assert!(check("little", 1024.0).is_ok());
        if available().is_some() {
            let text = check("the run", 1e18).unwrap_err().to_string();
            assert!(
                text.starts_with("the run needs about 931322574.6 GiB of memory,"),
                "{text}"
            );
        }
    }
}
