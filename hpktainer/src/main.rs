//! `hpktainer`: see its library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hpktainer::main()
}
