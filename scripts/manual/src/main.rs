//! `hpk-manual SHARE`: writes manual pages and completions into the folder SHARE. For `make dist`; not shipped itself.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(share) = std::env::args_os().nth(1) else {
        eprintln!("hpk-manual: which folder are the manual pages and completions to go into?");
        return ExitCode::from(2);
    };
    match hpk_manual::write(Path::new(&share)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hpk-manual: {error:#}");
            ExitCode::FAILURE
        }
    }
}
