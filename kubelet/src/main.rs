//! `hpk-kubelet`: see its library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hpk_kubelet::main()
}
