//! stdin, terminal, logger.

use std::{io::Write, time::Duration};

use hpk_shim_client::{ExecRequest, Stdio, TaskStatus};
use serde_json::json;

use crate::scene::{Pod, Scene, process};

fn type_into(fifo: &str, text: &[u8]) {
    let mut writer = std::fs::OpenOptions::new().write(true).open(fifo).unwrap();
    writer.write_all(text).unwrap();
}

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn stdin_terminal_and_close_io() {
    let (scene, _events) = Scene::new("tty");
    let pod = Pod::start(&scene, "sb").await;
    let shim = &pod.shim;
    pod.run("app", &pod.app(&["sleep", "1000"])).await;

    let input = scene.fifo("in");
    let (output, reading) = scene.output("out");
    let stdio = Stdio {
        stdin: input.clone(),
        stdout: output.clone(),
        stderr: output,
        ..Stdio::default()
    };
    pod.start_exec("cat", process(&["cat"]), stdio).await;
    type_into(&input, b"through a fifo\n");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        shim.state("app", "cat").await.unwrap().status,
        TaskStatus::Running,
        "the writer's going is no end"
    );
    shim.close_io("app", "cat").await.unwrap();
    assert_eq!(pod.end_exec("cat").await, 0);
    assert_eq!(reading.join().unwrap(), "through a fifo\n");

    let input = scene.fifo("tin");
    let (output, reading) = scene.output("tout");
    let stdio = Stdio {
        stdin: input.clone(),
        stdout: output,
        terminal: true,
        ..Stdio::default()
    };
    let mut sh = process(&["sh"]);
    sh["terminal"] = json!(true);
    pod.start_exec("tty", sh, stdio).await;
    shim.resize_pty("app", "tty", 91, 37).await.unwrap();
    type_into(&input, b"tty; stty size; exit 4\n");
    assert_eq!(pod.end_exec("tty").await, 4);
    let text = reading.join().unwrap();
    assert!(
        text.contains("/dev/pts/0") && text.contains("37 91"),
        "{text:?}"
    );

    let request = ExecRequest {
        id: "app".into(),
        exec_id: "no".into(),
        process: process(&["no-such-thing"]),
        stdio: Stdio::default(),
    };
    shim.exec(request).await.unwrap();
    let error = shim.start_task("app", "no").await.unwrap_err();
    assert!(
        error.shim_message().unwrap().contains("no-such-thing"),
        "{error:?}"
    );
    shim.delete("app", "no").await.unwrap();

    pod.remove("app").await;
    pod.end().await;
    scene.remove();
}

/// Reads one line, dies; the next one goes on where it stopped. `read` of a shell takes byte by byte.
const LOGGER: &str = r#"#!/bin/sh
exec 5>&-
file=$2
n=0
while IFS= read -r line <&3; do
    echo "$CONTAINER_ID $line" >>"$file"
    n=$((n+1))
    [ $n = 3 ] && [ ! -e "$file.died" ] && { : >"$file.died"; kill -9 $$; }
done
exit 0
"#;

#[tokio::test]
#[ignore = "needs a shim, root and a rootfs: see the head of main.rs"]
async fn a_logger_gets_every_line() {
    let (scene, _events) = Scene::new("log");
    let pod = Pod::start(&scene, "sb").await;
    let script = scene.dir.join("logger.sh");
    std::fs::write(&script, LOGGER).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let log = scene.dir.join("app.log");
    if !scene.is_ours() {
        std::fs::write(scene.dir.join("app.log.died"), "").unwrap();
    }
    let uri = format!("binary://{}?path={}", script.display(), log.display());
    let stdio = Stdio {
        stdout: uri.clone(),
        stderr: uri,
        ..Stdio::default()
    };
    let lines = "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.1; done";
    let app = pod.app(&["sh", "-c", lines]);
    pod.create("app", &app, stdio).await.unwrap();
    pod.shim.start_task("app", "").await.unwrap();
    assert_eq!(pod.shim.wait("app", "").await.unwrap().code, 0);
    pod.shim.delete("app", "").await.unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    let want: String = (1..=6).map(|n| format!("app line {n}\n")).collect();
    assert_eq!(text, want);
    pod.end().await;
    scene.remove();
}
