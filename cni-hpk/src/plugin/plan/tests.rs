use super::*;

fn config() -> Config {
    config_of(&["10.244.3.0/24"], &["10.244.0.0/16"])
}

fn dual() -> Config {
    config_of(
        &["10.244.3.0/24", "fd00:3::/64"],
        &["10.244.0.0/16", "fd00::/16"],
    )
}

fn config_of(subnets: &[&str], networks: &[&str]) -> Config {
    let pool = |subnet: &&str| vec![Pool::of(subnet.parse().unwrap()).unwrap()];
    Config {
        name: "n".to_owned(),
        bridge: "hpk-bridge".to_owned(),
        ranges: subnets.iter().map(pool).collect(),
        others: Vec::new(),
        mac: Mac::of("10.244.3.1".parse().unwrap()),
        networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
        mtu: 1450,
        ip_masq: true,
        nat: None,
    }
}

fn link(name: &str, kind: LinkKind) -> Link {
    Link {
        index: 7,
        name: name.to_owned(),
        kind,
        mac: Mac::of("10.244.3.1".parse().unwrap()),
        mtu: 1450,
        up: true,
        bridge: None,
        isolated: false,
        alias: "hpk network n".to_owned(),
    }
}

fn fresh() -> ObservedNode {
    ObservedNode {
        nat: nat::Observed {
            backend: Some(Backend::Nftables),
            comments: Vec::new(),
        },
        ..ObservedNode::default()
    }
}

fn finished() -> ObservedNode {
    ObservedNode {
        bridge: Some(link("hpk-bridge", LinkKind::Bridge)),
        bridge_addresses: vec!["10.244.3.1/24".parse().unwrap()],
        sysctls: sysctls(&config())
            .iter()
            .map(|sysctl| Some(sysctl.value.to_owned()))
            .collect(),
        nat: nat::Observed {
            backend: Some(Backend::Nftables),
            comments: masquerades(&config())
                .iter()
                .map(ToString::to_string)
                .collect(),
        },
    }
}

fn interface() -> PodInterface {
    PodInterface {
        join: Join::Veth,
        veth: VethPair {
            host_name: "hpk0123456789ab".to_owned(),
            host_mac: Mac::default(),
            pod_name: "eth0".to_owned(),
            pod_mac: Mac::default(),
            mtu: 1450,
            alias: String::new(),
        },
        addresses: vec!["10.244.3.7/24".parse().unwrap()],
        routes: gateway_routes(
            "10.244.3.7/24".parse().unwrap(),
            "10.244.3.1".parse().unwrap(),
        )
        .to_vec(),
        bridge: "hpk-bridge".to_owned(),
    }
}

fn attached() -> ObservedPod {
    ObservedPod {
        host_end: Some(Link {
            bridge: Some(7),
            isolated: true,
            ..link("hpk0123456789ab", LinkKind::Veth)
        }),
        bridge: Some(7),
        pod_end: Some(link("eth0", LinkKind::Veth)),
        addresses: vec!["10.244.3.7/24".parse().unwrap()],
        routes: interface().routes,
    }
}

#[test]
fn a_finished_bubble_needs_nothing() {
    assert_eq!(plan_node(&config(), &finished()), Ok(vec![]));
}

#[test]
fn a_fresh_bubble_gets_bridge_address_sysctls_and_nat() {
    for config in [config(), dual()] {
        let steps = plan_node(&config, &fresh()).unwrap();
        assert!(matches!(steps[0], NodeStep::AddBridge(_)));
        assert_eq!(steps[1], NodeStep::SetMtu(1450));
        assert!(matches!(
            steps.last(),
            Some(NodeStep::ReplaceNat(_, rules)) if rules.len() == config.ranges.len()
        ));
        let count = |wanted: fn(&NodeStep) -> bool| steps.iter().filter(|it| wanted(it)).count();
        let settings = count(|step| matches!(step, NodeStep::SetSysctl(_)));
        assert_eq!(settings, sysctls(&config).len());
        let addresses = count(|step| matches!(step, NodeStep::AddAddress(_)));
        assert_eq!(addresses, config.ranges.len());
    }
}

#[test]
fn a_bubble_where_nothing_masquerades_says_so_if_that_is_asked_for() {
    let observed = ObservedNode::default();
    assert_eq!(plan_node(&config(), &observed), Err(Conflict::NoNat));
    let off = Config {
        ip_masq: false,
        ..config()
    };
    assert!(plan_node(&off, &observed).is_ok());
}

#[test]
fn a_bridge_belongs_to_one_network() {
    let other = Config {
        name: "other".to_owned(),
        ..config()
    };
    let error = plan_node(&other, &finished()).unwrap_err();
    assert!(error.to_string().contains("hpk network n"));
}

#[test]
fn a_new_lease_moves_the_bridge_and_the_nat() {
    let moved = config_of(&["10.244.9.0/24"], &["10.244.0.0/16"]);
    let steps = plan_node(&moved, &finished()).unwrap();
    assert!(steps.contains(&NodeStep::RemoveAddress("10.244.3.1/24".parse().unwrap())));
    assert!(steps.contains(&NodeStep::AddAddress("10.244.9.1/24".parse().unwrap())));
    assert!(matches!(steps.last(), Some(NodeStep::ReplaceNat(..))));
}

#[test]
fn turning_masquerading_off_removes_the_rule() {
    let off = Config {
        ip_masq: false,
        ..config()
    };
    let steps = plan_node(&off, &finished()).unwrap();
    assert_eq!(steps, [NodeStep::ReplaceNat(Backend::Nftables, vec![])]);
}

#[test]
fn a_device_of_the_bridges_name_that_is_no_bridge_is_left_alone() {
    let observed = ObservedNode {
        bridge: Some(link("hpk-bridge", LinkKind::Other)),
        ..finished()
    };
    assert!(plan_node(&config(), &observed).is_err());
}

#[test]
fn an_attached_pod_needs_nothing() {
    assert_eq!(plan_pod(&interface(), &attached()), Ok(vec![]));
}

#[test]
fn a_foreign_interface_of_that_name_is_a_conflict() {
    let observed = ObservedPod {
        host_end: None,
        ..attached()
    };
    assert_eq!(
        plan_pod(&interface(), &observed),
        Err(Conflict::InterfaceTaken("eth0".to_owned()))
    );
}

#[test]
fn an_interface_taken_out_of_the_pod_is_told() {
    let observed = ObservedPod {
        pod_end: None,
        ..attached()
    };
    assert_eq!(
        plan_pod(&interface(), &observed),
        Err(Conflict::PodEndGone("eth0".to_owned()))
    );
}

#[test]
fn a_pod_of_both_families_takes_no_redirects() {
    let steps = plan_pod(&interface(), &ObservedPod::default()).unwrap();
    assert_eq!(steps.len(), 7);
    let mut dual = interface();
    dual.addresses.push("fd00:3::7/64".parse().unwrap());
    let steps = plan_pod(&dual, &ObservedPod::default()).unwrap();
    assert_eq!(steps[2], PodStep::QuietIpv6);
    assert_eq!(steps.len(), 9);
}

#[test]
fn a_lost_route_is_all_that_check_reports() {
    let mut observed = attached();
    observed.routes.pop();
    let steps = plan_pod(&interface(), &observed).unwrap();
    assert_eq!(steps.len(), 1);
    assert_eq!(steps[0].to_string(), "no route to 0.0.0.0/0");
}

#[test]
fn pods_of_one_bridge_are_reached_through_the_gateway() {
    let routes = interface().routes;
    let own = "10.244.3.0/24".parse().unwrap();
    let route = routes
        .iter()
        .find(|route| route.destination == own)
        .unwrap();
    assert_eq!(route.gateway, Some("10.244.3.1".parse().unwrap()));
}

#[test]
fn the_bridge_serves_the_ranges_of_other_attachments_too() {
    let other = Pool::of("10.244.9.0/24".parse().unwrap()).unwrap();
    let both = Config {
        others: vec![other],
        ..config()
    };
    let steps = plan_node(&both, &finished()).unwrap();
    assert_eq!(
        steps[0],
        NodeStep::AddAddress("10.244.9.1/24".parse().unwrap())
    );
    assert!(matches!(&steps[1..], [NodeStep::ReplaceNat(_, rules)] if rules.len() == 2));
}
