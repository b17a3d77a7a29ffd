//! Flannel's `subnet.env`.

#![no_main]

use cni_hpk::subnet::SubnetEnv;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(env) = SubnetEnv::parse(data) {
        assert!(env.ipv4.is_some() || env.ipv6.is_some());
        for lease in env.ipv4.iter() {
            assert!(lease.network().contains(&lease.subnet));
        }
        for lease in env.ipv6.iter() {
            assert!(lease.network().contains(&lease.subnet));
        }
    }
});
