//! The `CNI_*` variables: lines `NAME=VALUE`.

#![no_main]

use hpk_cni_types::{Args, Invocation};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let lookup = |name: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    if let Ok(invocation) = Invocation::from_lookup(lookup) {
        assert!(!invocation.container_id.contains('/'));
        let Args(pairs) = &invocation.args;
        let again = Args::parse(&Args::encode(pairs));
        assert_eq!(again.as_ref(), Ok(&invocation.args));
    }
});
