//! The runtime shim's scenarios (issue 5): io.containerd.hpk.v2 beside io.containerd.runc.v2
//! on one stock containerd, as root, on a host of the testbed.
//!
//! Layout: `containerd` – the daemon and its image, `timing` – start, exec and log
//! throughput, `memory` – what containers weigh.

mod containerd;
mod memory;
mod timing;

use super::scenario::Scenario;
use crate::testbed::Testbed;

/// The contenders; the first is the reference.
const CONTENDERS: &[&str] = &[RUNC, HPK];
const RUNC: &str = "runc";
const HPK: &str = "hpk";

pub fn scenarios(testbed: &Testbed) -> Vec<Box<dyn Scenario>> {
    vec![
        Box::new(timing::Timing::new(testbed)),
        Box::new(memory::Memory::new(testbed)),
    ]
}
