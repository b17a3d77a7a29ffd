//! This machine's processes: who is whose child, who is left.

use std::time::Duration;

use crate::scene::Scene;

pub fn kill(pid: u32) {
    let killed = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status();
    assert!(killed.unwrap().success());
}

/// Processes that say one of `words` in their command line or name, zombies aside.
pub fn processes_with(words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let read = |name: &str| std::fs::read(path.join(name)).unwrap_or_default();
        let said =
            String::from_utf8_lossy(&[read("cmdline"), read("comm")].concat()).replace('\0', " ");
        let is_zombie = String::from_utf8_lossy(&read("stat")).contains(") Z ");
        if path.join("cmdline").exists() && !is_zombie && words.iter().any(|w| said.contains(w)) {
            found.push(said);
        }
    }
    found
}

/// Waits until no process and no mount of the scene's is left, and removes it.
pub async fn nothing_is_left(scene: Scene) {
    let words = ["7654321", "hpk-init", &scene.dir.to_string_lossy()];
    // Apptainer's last one may still be on its way to find out.
    for _ in 0..250 {
        if processes_with(&words).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = processes_with(&words);
    assert!(left.is_empty(), "{left:#?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*scene.dir.to_string_lossy()), "{mounts}");
    scene.remove();
}

/// The process's children, by /proc/PID/stat's fourth field.
pub fn children(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let name = entry.unwrap().file_name();
        let Ok(pid) = name.to_string_lossy().parse::<u32>() else {
            continue;
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        if after.split_whitespace().nth(1) == Some(&of.to_string()) {
            found.push(pid);
        }
    }
    found
}
