//! `hpk-net-daemon`: see [`cni_hpk::daemon`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_hpk::daemon::main()
}
