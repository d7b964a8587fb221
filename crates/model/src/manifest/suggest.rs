//! "Did you mean": the known word nearest to an unknown one.

/// The word nearest to `found`, when it is near enough to be a slip of the keyboard.
pub(super) fn nearest<'a>(found: &str, words: &[&'a str]) -> Option<&'a str> {
    // Bounds the work on hostile input; no key is nearly as long.
    const MAX_CHARS: usize = 40;
    if found.chars().count() > MAX_CHARS {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace(['-', '_', ' '], "");
    let wanted = plain(found);
    words
        .iter()
        .map(|word| (distance(&wanted, &plain(word)), *word))
        .filter(|(steps, word)| *steps <= (word.len() / 3).max(1))
        .min_by_key(|(steps, _)| *steps)
        .map(|(_, word)| word)
}

/// Levenshtein distance with transpositions of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let width = b.len() + 1;
    let mut table = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            let at = i * width + j;
            if i == 0 || j == 0 {
                table[at] = i + j;
                continue;
            }
            let substitution = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (table[at - width] + 1)
                .min(table[at - 1] + 1)
                .min(table[at - width - 1] + substitution);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(table[at - 2 * width - 2] + 1);
            }
            table[at] = best;
        }
    }
    table[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::schema::allowed_keys;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let keys = allowed_keys("limits");
        assert_eq!(nearest("memmory", &keys), Some("memory"));
        assert_eq!(nearest("max-request", &keys), Some("max_request"));
        assert_eq!(nearest("timeuot", &keys), Some("timeout"));
        assert_eq!(nearest("colour", &keys), None);
        assert_eq!(nearest(&"x".repeat(100_000), &keys), None);
    }
}
