//! What another plugin printed, in every version's shape and back.

#![no_main]

use hpk_cni_types::{AddResult, ErrorObject, SpecVersion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = serde_json::from_slice::<ErrorObject>(data);
    let Ok(result) = serde_json::from_slice::<AddResult>(data) else {
        return;
    };
    for version in SpecVersion::ALL {
        let json = result.to_json(version);
        let again: AddResult = serde_json::from_value(json).expect("our own result");
        assert_eq!(again.ips, result.ips);
        assert_eq!(again.pod_ip(), result.pod_ip());
    }
});
