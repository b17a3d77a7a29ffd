use super::*;

fn config() -> Config {
    Config {
        bridge: "hpk-bridge".to_owned(),
        subnet: "10.244.3.0/24".parse().unwrap(),
        network: "10.244.0.0/16".parse().unwrap(),
        gateway: "10.244.3.1".parse().unwrap(),
        mtu: 1450,
        ip_masq: true,
    }
}

fn link(name: &str, kind: LinkKind) -> Link {
    Link {
        index: 7,
        name: name.to_owned(),
        kind,
        mac: Mac::of_ipv4(Ipv4Addr::new(10, 244, 3, 1)),
        mtu: 1450,
        up: true,
        bridge: None,
        isolated: false,
    }
}

fn finished() -> ObservedNode {
    ObservedNode {
        bridge: Some(link("hpk-bridge", LinkKind::Bridge)),
        bridge_addresses: vec!["10.244.3.1/24".parse().unwrap()],
        sysctls: sysctls("hpk-bridge")
            .iter()
            .map(|sysctl| Some(sysctl.value.to_owned()))
            .collect(),
        nat: masquerades(&config())
            .iter()
            .map(ToString::to_string)
            .collect(),
    }
}

fn interface() -> PodInterface {
    PodInterface {
        veth: VethPair {
            host_name: "hpk0123456789ab".to_owned(),
            pod_name: "eth0".to_owned(),
            pod_mac: Mac::default(),
            mtu: 1450,
            alias: String::new(),
        },
        address: "10.244.3.7/24".parse().unwrap(),
        gateway: "10.244.3.1".parse().unwrap(),
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
        routes: interface().routes(),
    }
}

#[test]
fn a_finished_bubble_needs_nothing() {
    assert_eq!(plan_node(&config(), &finished()), Ok(vec![]));
}

#[test]
fn a_fresh_bubble_gets_bridge_address_sysctls_and_nat() {
    let steps = plan_node(&config(), &ObservedNode::default()).unwrap();
    assert!(matches!(steps[0], NodeStep::AddBridge { mtu: 1450, .. }));
    assert!(matches!(steps.last(), Some(NodeStep::ReplaceNat(rules)) if rules.len() == 1));
    let settings = steps
        .iter()
        .filter(|step| matches!(step, NodeStep::SetSysctl(_)));
    assert_eq!(settings.count(), sysctls("b").len());
}

#[test]
fn a_new_lease_moves_the_bridge_and_the_nat() {
    let moved = Config {
        subnet: "10.244.9.0/24".parse().unwrap(),
        gateway: "10.244.9.1".parse().unwrap(),
        ..config()
    };
    let steps = plan_node(&moved, &finished()).unwrap();
    assert!(steps.contains(&NodeStep::RemoveAddress("10.244.3.1/24".parse().unwrap())));
    assert!(steps.contains(&NodeStep::AddAddress("10.244.9.1/24".parse().unwrap())));
    assert!(matches!(steps.last(), Some(NodeStep::ReplaceNat(_))));
}

#[test]
fn turning_masquerading_off_removes_the_rule() {
    let off = Config {
        ip_masq: false,
        ..config()
    };
    let steps = plan_node(&off, &finished()).unwrap();
    assert_eq!(steps, [NodeStep::ReplaceNat(vec![])]);
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
fn a_stale_host_end_is_replaced() {
    let observed = ObservedPod {
        pod_end: None,
        ..attached()
    };
    let steps = plan_pod(&interface(), &observed).unwrap();
    assert_eq!(steps[0], PodStep::RemoveHostEnd);
    assert!(matches!(steps[1], PodStep::AddVeth(_)));
    assert_eq!(steps.len(), 8);
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
    let routes = interface().routes();
    let own = "10.244.3.0/24".parse().unwrap();
    let route = routes
        .iter()
        .find(|route| route.destination == own)
        .unwrap();
    assert_eq!(route.gateway, Some(Ipv4Addr::new(10, 244, 3, 1).into()));
}
