//! Any text as `fulmar.toml`: it is refused with a place in the file, or its canonical text means
//! the same.

#![no_main]

use fulmar_model::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Manifest::parse(text, "fulmar.toml") {
        Ok(manifest) => {
            let canonical = manifest.to_toml();
            let again = Manifest::parse(&canonical, "canonical.toml");
            assert_eq!(again.as_ref(), Ok(&manifest), "{canonical}");
        }
        Err(error) => {
            let lines = text.matches('\n').count() + 1;
            assert!(!error.issues().is_empty());
            for issue in error.issues() {
                assert!((1..=lines).contains(&issue.line) && issue.column >= 1, "{error}");
                assert!(!issue.found.is_empty() && !issue.fix.is_empty(), "{error}");
            }
            // Messages quote the file: they must not grow with it.
            assert!(error.to_string().len() < 64 << 10, "{error}");
        }
    }
});
