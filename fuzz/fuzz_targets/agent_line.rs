//! Any line of an agent is answered, and says nothing that could not be meant.
#![no_main]

use fairway_core::agent_line::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    let Ok(report) = parse(line) else { return };
    assert!(report.percent.is_none_or(|percent| percent <= 100));
    // A reason changes no word.
    if !line.contains('#') {
        let reasoned = parse(&format!("{line} # because")).expect("the same words");
        assert_eq!((reasoned.percent, reasoned.admin), (report.percent, report.admin));
    }
});
