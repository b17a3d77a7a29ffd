use super::*;
use oci_spec::runtime::{Capability, LinuxNamespaceType};
use serde_json::json;

fn host() -> Host {
    Host {
        memory: 4 << 30,
        oom_score_floor: 0,
        bounding: u64::MAX,
        ids: Mapped::all(),
        machine: seccomp::Machine {
            architecture: "amd64",
            kernel: "6.1".to_owned(),
        },
    }
}

fn view() -> Sandbox {
    Sandbox {
        id: "s1".to_owned(),
        pid: 42,
        netns: Some(PathBuf::from("/run/netns/x")),
    }
}

fn planned(spec: serde_json::Value, env: &[(String, String)]) -> Spec {
    let pod: Pod = serde_json::from_value(
        json!({"metadata": {"name": "web", "namespace": "ns1", "uid": "u1"}, "spec": spec}),
    )
    .expect("pod");
    let image: ImageConfiguration = serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {"Entrypoint": ["/entry"], "Cmd": ["default"], "Env": ["A=image"]}}))
    .expect("image");
    let user = process::User {
        uid: 1000,
        gid: 100,
        additional_gids: vec![100],
        home: "/home/u".to_owned(),
    };
    let parts = pod.spec.clone().expect("spec");
    container(Inputs {
        pod: &pod,
        container: &parts.containers[0],
        image: &image,
        user: &user,
        is_stand_in: false,
        env,
        mounts: Vec::new(),
        nodename: "web",
        sandbox: &view(),
        beside: None,
        host: &host(),
        devices: Vec::new(),
        cgroup: PathBuf::from("/hpk/x"),
        oom_group: true,
        seccomp: None,
    })
    .expect("a spec")
}

fn process_of(spec: &Spec) -> oci_spec::runtime::Process {
    spec.process().clone().expect("process")
}

#[test]
fn arguments_are_expanded_and_replace_the_images() {
    let env = [("B".to_owned(), "7".to_owned())];
    let spec = planned(
        json!({"containers": [{"name": "c", "args": ["x$(B)"]}]}),
        &env,
    );
    let args = process_of(&spec).args().clone().expect("args");
    assert_eq!(args, ["/entry", "x7"]);
}

#[test]
fn the_pods_variables_go_over_the_images() {
    let env = [("A".to_owned(), "pod".to_owned())];
    let spec = planned(json!({"containers": [{"name": "c"}]}), &env);
    let all = process_of(&spec).env().clone().expect("env");
    assert!(all.contains(&"A=pod".to_owned()));
    assert!(all.contains(&"HOSTNAME=web".to_owned()));
    assert!(all.contains(&"HOME=/home/u".to_owned()));
}

#[test]
fn dropped_capabilities_are_gone_and_added_ones_there() {
    let context = json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}});
    let spec = planned(
        json!({"containers": [{"name": "c", "securityContext": context}]}),
        &[],
    );
    let set = process_of(&spec).capabilities().clone().expect("caps");
    let effective = set.effective().clone().expect("effective");
    assert_eq!(
        effective.into_iter().collect::<Vec<_>>(),
        [Capability::NetAdmin]
    );
}

#[test]
fn containers_join_the_sandboxs_network_and_ipc_but_not_its_pids() {
    let spec = planned(json!({"containers": [{"name": "c"}]}), &[]);
    let linux = spec.linux().clone().expect("linux");
    let namespaces = linux.namespaces().clone().expect("namespaces");
    let path = |kind: LinuxNamespaceType| {
        namespaces
            .iter()
            .find(|ns| ns.typ() == kind)
            .and_then(|ns| ns.path().clone())
    };
    assert_eq!(
        path(LinuxNamespaceType::Network),
        Some("/run/netns/x".into())
    );
    assert_eq!(
        path(LinuxNamespaceType::Ipc),
        Some("/proc/42/ns/ipc".into())
    );
    assert_eq!(path(LinuxNamespaceType::Pid), None);
}

#[test]
fn a_debugger_sees_its_targets_processes_unless_the_pod_shares_them_anyway() {
    let pid = |spec: serde_json::Value| {
        let pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("pod");
        let all = linux::container_namespaces(&pod, &view(), Some(77)).expect("namespaces");
        let found = all.iter().find(|ns| ns.typ() == LinuxNamespaceType::Pid);
        found.expect("a PID namespace").path().clone()
    };
    assert_eq!(
        pid(json!({"containers": []})),
        Some("/proc/77/ns/pid".into())
    );
    let shared = json!({"containers": [], "shareProcessNamespace": true});
    assert_eq!(pid(shared), Some("/proc/42/ns/pid".into()));
}

#[test]
fn limits_become_cgroup_values() {
    let resources = json!({"limits": {"cpu": "500m", "memory": "64Mi"}});
    let spec = planned(
        json!({"containers": [{"name": "c", "resources": resources}]}),
        &[],
    );
    let linux = spec.linux().clone().expect("linux");
    let resources = linux.resources().clone().expect("resources");
    let cpu = resources.cpu().clone().expect("cpu");
    assert_eq!((cpu.quota(), cpu.shares()), (Some(50_000), Some(512)));
    assert_eq!(resources.memory().and_then(|m| m.limit()), Some(64 << 20));
    let unified = resources.unified().clone().expect("unified");
    assert_eq!(unified["memory.oom.group"], "1");
}

#[test]
fn run_as_non_root_refuses_root() {
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec":
        {"containers": [{"name": "c"}], "securityContext": {"runAsNonRoot": true}}}))
    .expect("pod");
    let root = hpk_images::user::User {
        uid: 0,
        gid: 0,
        additional_gids: Vec::new(),
        name: None,
        home: "/".to_owned(),
    };
    let spec = pod.spec.clone().expect("spec");
    assert!(process::user(&pod, &spec.containers[0], root).is_err());
}

#[test]
fn the_sandbox_is_marked_for_the_shim() {
    let spec = sandbox(
        &Pod::default(),
        &view(),
        "web",
        &host(),
        PathBuf::from("/hpk/s"),
    )
    .expect("spec");
    let annotations = spec.annotations().clone().expect("annotations");
    assert_eq!(annotations["io.kubernetes.cri.container-type"], "sandbox");
    assert_eq!(annotations["io.kubernetes.cri.sandbox-id"], "s1");
}

#[test]
fn a_pods_gpu_annotation_reaches_its_containers_and_not_its_sandbox() {
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"annotations": {"slurm.hpk.io/gpu": "nv"}}}))
            .expect("pod");
    let given = |kind, name| annotations(&pod, kind, "s1", name).remove("io.hpk.gpu");
    assert_eq!(given("container", Some("c")).as_deref(), Some("nv"));
    assert_eq!(given("sandbox", None), None);
}

#[test]
fn where_root_is_all_there_is_the_sandbox_runs_as_root() {
    let user = |ids| {
        let host = Host { ids, ..host() };
        let spec = sandbox(&Pod::default(), &view(), "web", &host, "/hpk/s".into());
        let process = spec.expect("spec").process().clone();
        process.expect("process").user().uid()
    };
    assert_eq!(user(Mapped::all()), 65_535);
    assert_eq!(user(Mapped::root_only()), 0);
}

#[test]
fn only_a_sandbox_with_its_own_network_names_its_host() {
    let hostname = |view: &Sandbox| {
        let spec = sandbox(
            &Pod::default(),
            view,
            "web",
            &host(),
            PathBuf::from("/hpk/s"),
        )
        .expect("spec");
        spec.hostname().clone()
    };
    assert_eq!(hostname(&view()), Some("web".to_owned()));
    let on_host = Sandbox {
        netns: None,
        ..view()
    };
    assert_eq!(hostname(&on_host), None);
    let container = planned(json!({"containers": [{"name": "c"}]}), &[]);
    assert_eq!(container.hostname(), &None);
}
