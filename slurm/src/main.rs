//! `hpk-bubble`: see its library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hpk_bubble::main()
}
