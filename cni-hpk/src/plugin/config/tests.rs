use super::*;
use crate::subnet::Lease;

fn flannel() -> SubnetEnv {
    SubnetEnv {
        ipv4: Some(Lease {
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            subnet: "10.244.3.0/24".parse().unwrap(),
        }),
        ipv6: None,
        mtu: 1400,
        ip_masq: true,
    }
}

fn dual() -> SubnetEnv {
    SubnetEnv {
        ipv6: Some(Lease {
            networks: vec!["fd00:10::/48".parse().unwrap()],
            subnet: "fd00:10:0:3::/64".parse().unwrap(),
        }),
        ..flannel()
    }
}

fn overlay() -> OverlayState {
    serde_json::from_value(json!({
        "mode": "kernel", "mtu": 1450, "node_ip": "10.244.3.0", "device": "hpk-vxlan"
    }))
    .unwrap()
}

fn decide_flannel(keys: &Keys, env: &SubnetEnv) -> Result<Config, Error> {
    decide(
        "n".to_owned(),
        keys,
        Vec::new(),
        false,
        Vec::new(),
        Some(env),
        None,
    )
}

fn parse(keys: &str) -> Result<Parsed, Error> {
    let json =
        format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"cni-hpk","dataDir":"/d",{keys}}}"#);
    Parsed::parse(json.as_bytes())
}

#[test]
fn the_overlays_mtu_goes_before_flannels() {
    let keys = Keys::default();
    let config = decide(
        "n".to_owned(),
        &keys,
        Vec::new(),
        false,
        Vec::new(),
        Some(&flannel()),
        Some(&overlay()),
    )
    .unwrap();
    assert_eq!(config.mtu, 1450);
    let config = decide_flannel(&keys, &flannel()).unwrap();
    assert_eq!(config.mtu, 1400);
    assert_eq!(config.ranges[0][0].gateway.to_string(), "10.244.3.1");
}

#[test]
fn masquerading_is_left_to_flannel_unless_asked_for() {
    let config = decide_flannel(&Keys::default(), &flannel()).unwrap();
    assert!(!config.ip_masq);
    let keys = Keys {
        ip_masq: Some(true),
        ..Keys::default()
    };
    assert!(decide_flannel(&keys, &flannel()).unwrap().ip_masq);
}

#[test]
fn both_of_flannels_families_give_an_address() {
    let config = decide_flannel(&Keys::default(), &dual()).unwrap();
    assert_eq!(config.ranges.len(), 2);
    assert_eq!(list(&config.networks), "10.244.0.0/16, fd00:10::/48");
    let small = SubnetEnv {
        mtu: 1279,
        ..dual()
    };
    let error = decide_flannel(&Keys::default(), &small).unwrap_err();
    assert!(error.to_string().contains("1279"));
}

#[test]
fn without_flannel_the_pools_may_stand_in_any_of_four_places() {
    for keys in [
        r#""subnet":"10.1.0.0/24""#,
        r#""ranges":[[{"subnet":"10.1.0.0/24"}]]"#,
        r#""ipam":{"subnet":"10.1.0.0/24"}"#,
        r#""ipam":{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/24"}]]}"#,
    ] {
        let config = parse(keys).unwrap().resolve().unwrap();
        assert_eq!(list(&config.networks), "10.1.0.0/24", "{keys}");
        assert_eq!(config.ranges[0][0].last.to_string(), "10.1.0.254");
    }
    let config = parse(r#""subnet":["10.1.0.0/24","fd00::/64"]"#).unwrap();
    assert_eq!(config.resolve().unwrap().ranges.len(), 2);
}

#[test]
fn what_is_wrong_is_named() {
    for (keys, word) in [
        (
            r#""subnet":"10.1.0.0/24","network":"10.2.0.0/16""#,
            "10.1.0.0/24",
        ),
        (r#""subnet":"10.1.0.0/33""#, "10.1.0.0/33"),
        (r#""subnet":7"#, "7"),
        (r#""subnet":["10.1.0.0/24",{}]"#, "{}"),
        (r#""subnet":"10.1.0.0/24","network":"x""#, "\"x\""),
        (r#""subnet":"10.1.0.0/24","mtu":70000"#, "70000"),
        (r#""ranges":[[]]"#, "range set 0"),
        (r#""ipam":{"ranges":7}"#, "7"),
        (r#""bridge":"a/b""#, "a/b"),
        (r#""subnet":"10.1.0.0/24","ipMasqBackend":"pf""#, "pf"),
    ] {
        let error = parse(keys).and_then(|parsed| parsed.resolve()).unwrap_err();
        assert!(error.to_string().contains(word), "{keys}: {error}");
    }
}

#[test]
fn the_ipam_plugin_is_told_all_we_know() {
    let parsed = parse(r#""subnet":"10.244.3.0/24","prevResult":{},"args":{"cni":{}}"#).unwrap();
    let conf = parsed.ipam_conf(&parsed.resolve().unwrap());
    assert_eq!(conf["ipam"]["type"], "host-local");
    assert_eq!(conf["ipam"]["dataDir"], "/d/networks");
    assert_eq!(conf["ipam"]["ranges"][0][0]["subnet"], "10.244.3.0/24");
    assert_eq!(conf["args"], json!({"cni": {}}));
    assert!(conf.get("prevResult").is_none());
}

#[test]
fn a_delegate_is_completed_as_flannels_plugin_does() {
    let parsed = parse(r#""ipam":{"routes":[{"dst":"192.0.2.0/24"}]},"delegate":{}"#).unwrap();
    let config = decide_flannel(&Keys::default(), &dual()).unwrap();
    let block = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
    let conf = parsed.delegate_conf(&block("{}"), &config).unwrap();
    assert_eq!(
        (
            &conf["type"],
            &conf["isGateway"],
            &conf["ipMasq"],
            &conf["mtu"]
        ),
        (&json!("bridge"), &json!(true), &json!(false), &json!(1400))
    );
    let ipam = &conf["ipam"];
    assert_eq!(ipam["ranges"].as_array().unwrap().len(), 2);
    assert_eq!(
        ipam["routes"],
        json!([{"dst": "192.0.2.0/24"}, {"dst": "10.244.0.0/16"}, {"dst": "fd00:10::/48"}])
    );
    let kept = block(r#"{"type":"ptp","mtu":1300,"hairpinMode":true}"#);
    let conf = parsed.delegate_conf(&kept, &config).unwrap();
    assert_eq!(
        (&conf["mtu"], &conf["hairpinMode"]),
        (&json!(1300), &json!(true))
    );
    assert!(conf.get("isGateway").is_none());
    let error = parsed.delegate_conf(&block(r#"{"name":"other"}"#), &config);
    assert!(error.unwrap_err().to_string().contains("other"));
}

#[test]
fn ranges_that_come_with_an_attachment_go_first_and_others_are_served_too() {
    let asked = r#""runtimeConfig":{"ipRanges":[[{"subnet":"10.9.0.0/24"}]]}"#;
    let parsed = parse(asked).unwrap();
    assert!(parsed.has_asked_ranges());
    let config = parsed.resolve().unwrap();
    assert_eq!(config.ranges.len(), 1, "nothing of Flannel's");
    assert_eq!(config.networks, ["10.9.0.0/24".parse().unwrap()]);

    let both = parse(&format!(r#"{asked},"subnet":"10.1.0.0/24""#)).unwrap();
    let other = Pool::of("10.8.0.0/24".parse().unwrap()).unwrap();
    let config = both.resolve_beside(vec![other]).unwrap();
    let subnets = |pools: Vec<&Pool>| -> Vec<String> {
        pools.iter().map(|pool| pool.subnet.to_string()).collect()
    };
    assert_eq!(
        subnets(config.pools().collect()),
        ["10.9.0.0/24", "10.1.0.0/24"]
    );
    assert_eq!(config.served().count(), 3);
    assert_eq!(
        config.networks,
        ["10.1.0.0/24", "10.8.0.0/24", "10.9.0.0/24"].map(|net| net.parse().unwrap())
    );

    let none = parse(r#""runtimeConfig":{"ipRanges":[]},"subnet":"10.1.0.0/24""#).unwrap();
    assert!(!none.has_asked_ranges());
    for wrong in [
        "7",
        r#"[{"subnet":"10.9.0.0/24"}]"#,
        r#"[[{"subnet":"10.9.0.1/24"}]]"#,
    ] {
        let parsed = parse(&format!(r#""runtimeConfig":{{"ipRanges":{wrong}}}"#)).unwrap();
        assert!(parsed.resolve().is_err(), "{wrong}");
    }
}
