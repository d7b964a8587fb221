//! Names of typed state.

/// The longest name, in bytes; leaves room for a map's keys.
const MAX_BYTES: usize = 200;

/// Checks the name of a value, counter, map or list, at compile time if it is a `static`.
///
/// Separators are not allowed, so that `a` with the key `b:c` and `a:b` with the key `c` cannot meet.
pub(crate) const fn checked(name: &'static str) -> &'static str {
    let bytes = name.as_bytes();
    assert!(
        !bytes.is_empty() && bytes.len() <= MAX_BYTES,
        "the name of a state is 1 to 200 bytes long"
    );
    let mut at = 0;
    while at < bytes.len() {
        assert!(
            bytes[at] != b':' && bytes[at] != b'/' && bytes[at] >= b' ' && bytes[at] != 0x7f,
            "the name of a state has no ':', no '/' and no control characters"
        );
        at += 1;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_and_lengths_are_checked() {
        assert_eq!(checked("tracks of today"), "tracks of today");
        for wrong in ["", "a:b", "a/b", "a\nb"] {
            assert!(
                std::panic::catch_unwind(|| checked(wrong)).is_err(),
                "{wrong:?}"
            );
        }
    }
}
