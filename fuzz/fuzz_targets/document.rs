//! Any text is answered: a configuration, or problems with places inside the text.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // Sources would read this machine's files.
    if text.contains("sources") {
        return;
    }
    // YAML breaks lines at a carriage return alone, too.
    let lines = text.matches(['\n', '\r']).count() as u32;
    if let Err(problems) = fairway_config::load_text(&Path::new("fuzz.yaml").into(), text) {
        assert!(!problems.is_empty());
        for problem in problems.list {
            assert!(problem.place.line <= lines + 1, "{problem} of {lines} lines");
        }
    }
});
