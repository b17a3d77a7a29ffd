use std::os::unix::fs::PermissionsExt as _;

use super::*;
use hpk_cni_types::conf;

/// A folder of shell plugins that log how they were called.
struct Bench {
    folder: PathBuf,
    client: Client,
}

impl Bench {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("hpk-client-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let client = Client::new(vec![folder.clone()], folder.join("cache"));
        Self { folder, client }
    }

    /// A plugin that logs `TYPE COMMAND` and its stdin, then does `script`.
    fn plugin(&self, name: &str, script: &str) {
        let path = self.folder.join(name);
        let text = format!(
            "#!/bin/sh\ncat > {dir}/{name}.$CNI_COMMAND.json\necho {name} $CNI_COMMAND >> {dir}/log\n{script}\n",
            dir = self.folder.display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn stdin(&self, plugin: &str, command: &str) -> Value {
        let path = self.folder.join(format!("{plugin}.{command}.json"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

const PRINT: &str = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}]}' || true"#;

fn list(plugins: &str) -> NetworkList {
    let json = format!(r#"{{"cniVersion":"1.1.0","name":"net","plugins":{plugins}}}"#);
    conf::NetworkList::parse(json.as_bytes()).unwrap().into()
}

fn attachment() -> Attachment {
    let capability_args = json!({"portMappings": [{"hostPort": 80}], "bandwidth": {}});
    Attachment {
        container_id: "c1".to_owned(),
        netns: "/run/netns/c1".into(),
        ifname: "eth0".to_owned(),
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        capability_args: capability_args.as_object().unwrap().clone(),
    }
}

#[tokio::test]
async fn results_are_chained_and_cached_for_del() {
    let bench = Bench::new("chain");
    bench.plugin("a", PRINT);
    bench.plugin("b", PRINT);
    let list = list(r#"[{"type":"a"},{"type":"b","capabilities":{"portMappings":true}}]"#);
    let result = bench.client.add(&list, &attachment()).await.unwrap();
    assert_eq!(result.pod_ip(), Some("10.0.0.2".parse().unwrap()));
    let given = bench.stdin("b", "ADD");
    assert_eq!(given["prevResult"]["ips"][0]["address"], "10.0.0.2/24");
    assert_eq!(
        given["runtimeConfig"],
        json!({"portMappings": [{"hostPort": 80}]})
    );
    assert!(bench.stdin("a", "ADD").get("runtimeConfig").is_none());
    assert!(given.get("capabilities").is_none());
    assert!(bench.folder.join("cache/results/net-c1-eth0").is_file());

    // A caller that knows the id alone, as after a restart.
    let bare = Attachment {
        container_id: "c1".to_owned(),
        ifname: "eth0".to_owned(),
        ..Attachment::default()
    };
    bench.client.check(&list, &bare).await.unwrap();
    bench.client.del(&list, &bare).await.unwrap();
    assert_eq!(
        bench.stdin("b", "DEL")["runtimeConfig"],
        given["runtimeConfig"]
    );
    assert!(bench.stdin("a", "DEL").get("prevResult").is_some());
    assert_eq!(
        bench.log(),
        ["a ADD", "b ADD", "a CHECK", "b CHECK", "b DEL", "a DEL"]
    );
    assert!(!bench.folder.join("cache/results/net-c1-eth0").exists());
}

#[tokio::test]
async fn a_failed_add_is_undone_and_says_what_the_plugin_said() {
    let bench = Bench::new("undo");
    bench.plugin("a", PRINT);
    bench.plugin(
        "b",
        r#"[ $CNI_COMMAND = DEL ] || { echo '{"code":7,"msg":"no subnet"}'; exit 1; }"#,
    );
    let list = list(r#"[{"type":"a"},{"type":"b"}]"#);
    let error = bench.client.add(&list, &attachment()).await.unwrap_err();
    assert_eq!(error.plugin_error().unwrap().msg, "no subnet");
    assert_eq!(bench.log(), ["a ADD", "b ADD", "b DEL", "a DEL"]);
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_and_undone() {
    let mut bench = Bench::new("hang");
    bench.client.limit = Duration::from_secs(3);
    let pid = bench.folder.join("pid");
    let hang = format!(
        "[ $CNI_COMMAND = DEL ] || {{ sleep 600 & echo $! > {}; wait; }}",
        pid.display()
    );
    bench.plugin("a", &hang);
    let list = list(r#"[{"type":"a"}]"#);
    let error = bench.client.add(&list, &attachment()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"CNI plugin "a" did not finish ADD within 3s"#
    );
    assert_eq!(bench.log(), ["a ADD", "a DEL"]);
    let delegate = std::fs::read_to_string(pid).unwrap();
    let stat = format!("/proc/{}/stat", delegate.trim());
    let has_ended = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    while !has_ended() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_missing_plugin_names_itself_and_the_folders() {
    let bench = Bench::new("missing");
    let error = bench
        .client
        .del(&list(r#"[{"type":"nothere"}]"#), &attachment())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::PluginNotFound { .. }));
    assert!(error.to_string().contains("nothere"));
}

#[tokio::test]
async fn a_plugin_that_prints_rubbish_is_quoted() {
    let bench = Bench::new("rubbish");
    bench.plugin("a", "echo boom >&2; exit 3");
    let error = bench
        .client
        .del(&list(r#"[{"type":"a"}]"#), &attachment())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("boom"), "{error}");
}

#[tokio::test]
async fn gc_deletes_what_is_not_wanted_and_asks_the_plugins() {
    let bench = Bench::new("gc");
    bench.plugin("a", PRINT);
    let list = list(r#"[{"type":"a"}]"#);
    for id in ["c1", "c2"] {
        let attachment = Attachment {
            container_id: id.to_owned(),
            ..attachment()
        };
        bench.client.add(&list, &attachment).await.unwrap();
    }
    let valid = [("c2".to_owned(), "eth0".to_owned())];
    bench.client.gc(&list, &valid).await.unwrap();
    assert_eq!(bench.log(), ["a ADD", "a ADD", "a DEL", "a GC"]);
    assert_eq!(
        bench.stdin("a", "GC")["cni.dev/valid-attachments"],
        json!([{"containerID": "c2", "ifname": "eth0"}])
    );
    let left = bench.client.cached_attachments(&list).unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].container_id, "c2");
}

#[tokio::test]
async fn plugins_that_know_neither_gc_nor_status_are_passed_over() {
    let bench = Bench::new("old");
    bench.plugin(
        "a",
        r#"echo '{"code":4,"msg":"unknown CNI_COMMAND"}'; exit 1"#,
    );
    let list = list(r#"[{"type":"a"}]"#);
    bench.client.gc(&list, &[]).await.unwrap();
    bench.client.status(&list).await.unwrap();
}

#[tokio::test]
async fn check_of_an_unknown_attachment_is_an_error() {
    let bench = Bench::new("unknown");
    bench.plugin("a", PRINT);
    let error = bench
        .client
        .check(&list(r#"[{"type":"a"}]"#), &attachment())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::UnknownAttachment { .. }));
}

#[tokio::test]
async fn a_torn_cache_keeps_nobody_from_del_or_gc() {
    let bench = Bench::new("torn");
    bench.plugin("a", PRINT);
    let list = list(r#"[{"type":"a"}]"#);
    bench.client.add(&list, &attachment()).await.unwrap();
    std::fs::write(bench.folder.join("cache/results/net-c2-eth0"), "{").unwrap();
    bench.client.gc(&list, &[]).await.unwrap();
    let torn = Attachment {
        container_id: "c2".to_owned(),
        ..attachment()
    };
    bench.client.del(&list, &torn).await.unwrap();
    let left = std::fs::read_dir(bench.folder.join("cache/results")).unwrap();
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn the_cache_is_libcnis() {
    let bench = Bench::new("format");
    bench.plugin("a", PRINT);
    let list = list(r#"[{"type":"a"}]"#);
    bench.client.add(&list, &attachment()).await.unwrap();
    let file = bench.folder.join("cache/results/net-c1-eth0");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let entry: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for (key, value) in [
        ("kind", json!("cniCacheV1")),
        ("containerId", json!("c1")),
        ("ifName", json!("eth0")),
        ("networkName", json!("net")),
        ("netns", json!("/run/netns/c1")),
        ("cniArgs", json!([["IgnoreUnknown", "1"]])),
    ] {
        assert_eq!(entry[key], value);
    }
    assert!(entry["config"].is_string() && entry["result"].is_object());
    // A conflist of a newer version: prevResult comes in that.
    let mut newer = list.clone().into_inner();
    newer.cni_version = SpecVersion::V0_4_0;
    bench
        .client
        .del(&newer.into(), &attachment())
        .await
        .unwrap();
    assert_eq!(bench.stdin("a", "DEL")["prevResult"]["cniVersion"], "0.4.0");
}

#[tokio::test]
async fn a_list_that_disables_gc_is_left_alone() {
    let bench = Bench::new("nogc");
    bench.plugin("a", PRINT);
    let mut list = list(r#"[{"type":"a"}]"#).into_inner();
    list.disable_gc = true;
    let list = list.into();
    bench.client.add(&list, &attachment()).await.unwrap();
    bench.client.gc(&list, &[]).await.unwrap();
    assert_eq!(bench.log(), ["a ADD"]);
}
