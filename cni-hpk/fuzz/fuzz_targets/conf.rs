//! A network configuration on stdin, with what it asks for one attachment.

#![no_main]

use cni_hpk::plugin::config::Parsed;
use cni_hpk::plugin::request::Request;
use hpk_cni_types::Args;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut parsed) = Parsed::parse(data) else {
        return;
    };
    let _ = Request::read(&parsed.conf, &Args::default());
    let _ = parsed.conf.prev_result();
    // Not this machine's files.
    parsed.conf.plugin.overlay_file = None;
    parsed.conf.plugin.subnet_file = Some("/nonexistent/subnet.env".into());
    let Ok(config) = parsed.resolve() else {
        return;
    };
    assert!(config.pools().all(|pool| pool.subnet.contains(&pool.gateway)));
    assert_eq!(parsed.ipam_conf(&config)["name"], parsed.conf.name.as_str());
    if let Some(block) = &parsed.conf.plugin.delegate {
        let _ = parsed.delegate_conf(block, &config);
    }
});
