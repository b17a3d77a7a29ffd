use serde_json::{Value, json};

use super::*;

fn spec(extra: Value) -> Spec {
    let mut base = json!({
        "ociVersion": "1.1.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
    });
    let fields = base.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    serde_json::from_value(base).unwrap()
}

fn devices(paths: &[&str]) -> Value {
    let device = |path: &&str| json!({"path": path, "type": "c", "major": 195, "minor": 0});
    let all: Vec<Value> = paths.iter().map(device).collect();
    json!({"linux": {"devices": all, "resources": {"devices": [{"allow": false, "access": "rwm"}]}}})
}

fn asked(spec: &Spec) -> Vec<(Make, bool)> {
    let all = wanted(spec).unwrap();
    all.iter().map(|w| (w.make, w.by_annotation)).collect()
}

fn node(path: &str, minor: i64) -> Node {
    Node {
        path: path.into(),
        major: 195,
        minor,
    }
}

fn library(path: &str) -> Library {
    Library::at(Path::new(path)).unwrap()
}

#[test]
fn the_annotation_decides_and_without_it_the_nodes_asked_for() {
    let annotated = |value: &str| {
        let mut all = devices(&["/dev/nvidia0"]);
        all["annotations"] = json!({ANNOTATION: value});
        spec(all)
    };
    assert_eq!(asked(&annotated("rocm")), [(Make::Amd, true)]);
    let both = [(Make::Nvidia, true), (Make::Amd, true)];
    assert_eq!(asked(&annotated("nv, rocm,nv")), both);
    assert_eq!(asked(&annotated("none")), []);
    let nodes = spec(devices(&["/dev/nvidia0", "/dev/fuse"]));
    assert_eq!(asked(&nodes), [(Make::Nvidia, false)]);
    let nodes = spec(devices(&["/dev/kfd", "/dev/dri/renderD128"]));
    assert_eq!(asked(&nodes), [(Make::Amd, false)]);
    assert_eq!(asked(&spec(devices(&["/dev/dri/renderD128"]))), []);
    assert_eq!(asked(&spec(json!({}))), []);
    let sandbox =
        json!({"annotations": {ANNOTATION: "nv", "io.kubernetes.cri.container-type": "sandbox"}});
    assert_eq!(asked(&spec(sandbox)), []);
}

#[test]
fn an_annotation_that_is_none_of_the_words_is_refused_with_its_value() {
    for value in ["", "yes", "nv,", "nvidia,rocm", "none,nv"] {
        let spec = spec(json!({"annotations": {ANNOTATION: value}}));
        let text = wanted(&spec).unwrap_err().to_string();
        assert!(text.contains(ANNOTATION), "{text}");
        assert!(text.contains(&format!("{value:?}")), "{text}");
    }
}

#[test]
fn listed_libraries_are_found_by_the_beginnings_of_their_names() {
    let listed = parse_list("libcuda.so\nlibGL.so\n/opt/driver/libx.so.1\nnvidia-smi\n");
    let cache = [
        library("/usr/lib/libcuda.so.1"),
        library("/usr/lib/libcuda.so"),
        library("/usr/lib/libcudart.so.12"),
        library("/usr/lib32/libcuda.so.1"),
        library("/usr/lib/libGL.so.1"),
    ];
    let found = libraries(&listed, &[], &cache);
    assert_eq!(
        found,
        [
            library("/usr/lib/libcuda.so.1"),
            library("/usr/lib/libcuda.so"),
            library("/usr/lib/libGL.so.1"),
            library("/opt/driver/libx.so.1"),
        ]
    );
    let inside = [library("/.singularity.d/libs/libcuda.so.1")];
    let listed = parse_list("libcuda.so\nlibGL.so\n");
    assert_eq!(libraries(&listed, &inside, &cache), inside);
}

#[test]
fn a_driver_is_mounted_read_only_and_found_by_the_linker() {
    let mut spec = spec(json!({
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/", "env": ["LD_LIBRARY_PATH=/opt/lib"]},
        "mounts": [{"destination": "/usr/bin/nvidia-smi", "source": "/mine", "options": ["bind"]}],
    }));
    let wanted = Wanted {
        make: Make::Nvidia,
        by_annotation: true,
    };
    let driver = Driver {
        libraries: vec![library("/usr/lib64/libcuda.so.1")],
        programs: vec![
            "/opt/bin/nvidia-smi".into(),
            "/opt/bin/nvidia-debugdump".into(),
        ],
        files: vec!["/usr/share/nvidia/nvoptix.bin".into()],
        nodes: vec![node("/dev/nvidiactl", 255), node("/dev/nvidia0", 0)],
    };
    add(&mut spec, wanted, &driver).unwrap();
    let mounted: Vec<(String, String)> = spec
        .mounts()
        .iter()
        .flatten()
        .skip(1)
        .map(|m| {
            assert_eq!(m.options().as_deref().unwrap(), OPTIONS);
            let source = m.source().as_deref().unwrap();
            (
                m.destination().display().to_string(),
                source.display().to_string(),
            )
        })
        .collect();
    let pair = |to: &str, from: &str| (to.to_owned(), from.to_owned());
    assert_eq!(
        mounted,
        [
            pair(
                "/.singularity.d/libs/libcuda.so.1",
                "/usr/lib64/libcuda.so.1"
            ),
            pair("/usr/bin/nvidia-debugdump", "/opt/bin/nvidia-debugdump"),
            pair(
                "/usr/share/nvidia/nvoptix.bin",
                "/usr/share/nvidia/nvoptix.bin"
            ),
        ]
    );
    let env = spec.process().as_ref().unwrap().env().clone().unwrap();
    assert_eq!(env, ["LD_LIBRARY_PATH=/opt/lib:/.singularity.d/libs"]);
    let devices = spec.linux().as_ref().unwrap().devices().clone().unwrap();
    assert_eq!(devices.len(), 2);
}

#[test]
fn who_names_its_gpus_gets_no_other_but_what_all_of_them_need() {
    let mut spec = spec(devices(&["/dev/nvidia0"]));
    let wanted = wanted(&spec).unwrap()[0];
    let driver = Driver {
        nodes: vec![
            node("/dev/nvidia0", 0),
            node("/dev/nvidia1", 1),
            node("/dev/nvidiactl", 255),
        ],
        ..Driver::default()
    };
    add(&mut spec, wanted, &driver).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    let paths: Vec<&Path> = linux
        .devices()
        .iter()
        .flatten()
        .map(|d| d.path().as_path())
        .collect();
    assert_eq!(
        paths,
        [Path::new("/dev/nvidia0"), Path::new("/dev/nvidiactl")]
    );
    // Its cgroup forbids what isn't named.
    let rules = linux
        .resources()
        .as_ref()
        .unwrap()
        .devices()
        .clone()
        .unwrap();
    assert_eq!(rules.len(), 2);
    assert_eq!((rules[1].allow(), rules[1].minor()), (true, Some(255)));
}

#[test]
fn an_outer_dev_is_left_as_it_is() {
    let mut spec = spec(
        json!({"mounts": [{"destination": "/dev", "source": "/dev", "type": "bind", "options": ["rbind"]}]}),
    );
    let wanted = Wanted {
        make: Make::Amd,
        by_annotation: true,
    };
    let driver = Driver {
        nodes: vec![node("/dev/kfd", 0)],
        ..Driver::default()
    };
    add(&mut spec, wanted, &driver).unwrap();
    assert!(spec.linux().as_ref().is_none_or(|l| l.devices().is_none()));
    assert!(
        spec.process()
            .as_ref()
            .unwrap()
            .env()
            .iter()
            .flatten()
            .all(|e| !e.contains(LIBRARIES))
    );
}
