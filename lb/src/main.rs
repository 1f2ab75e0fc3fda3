//! The `fairway` program. See `fairway --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    fairway::main()
}
