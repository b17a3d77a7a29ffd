//! A conflist, as an administrator writes it.

#![no_main]

use hpk_cni_types::NetworkList;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(list) = NetworkList::parse(data) {
        assert!(!list.plugins.is_empty());
    }
});
