//! `pods` and `ps`.

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::List;
use super::records::{Found, Records, state};
use crate::pod::record::PodRecord;

/// As many digits of an id as crictl shows.
const SHORT: usize = 13;

/// A line for each pod; those without a sandbox only where all are wanted.
pub async fn pods(list: &List) -> Result<()> {
    let records = wanted(list)?;
    let shown = |pod: &&PodRecord| list.all || pod.sandbox.is_some();
    let mut table = Table::new(list, "POD ID|CREATED|STATE|NAME|NAMESPACE|IP|PID");
    for pod in records.0.iter().filter(shown) {
        let sandbox = pod.sandbox.as_ref();
        let id = sandbox.map_or("", |sandbox| sandbox.id.as_str());
        let ips = sandbox.map_or(&[][..], |sandbox| &sandbox.ips);
        let pid = sandbox.map(|sandbox| sandbox.pid).filter(|pid| *pid != 0);
        let told = json!({
            "id": id,
            "uid": pod.uid,
            "name": pod.name,
            "namespace": pod.namespace,
            "createdAt": pod.start_time.to_string(),
            "state": ready(pod),
            "phase": format!("{:?}", pod.state),
            "ips": ips,
            "pid": pid,
        });
        let row = [
            short(id),
            &age(pod.start_time),
            ready(pod),
            &pod.name,
            &pod.namespace,
            &ips.join(","),
            &number(pid),
        ];
        table.add(id, &row, &told);
    }
    table.print();
    Ok(())
}

/// A line for each container that runs, or for all.
pub async fn containers(list: &List) -> Result<()> {
    let records = wanted(list)?;
    let columns = "CONTAINER|IMAGE|CREATED|STATE|NAME|ATTEMPT|PID|POD|NAMESPACE";
    let mut table = Table::new(list, columns);
    for found in records.containers() {
        if !list.all && found.run.exit.is_some() {
            continue;
        }
        let pid = found.pid().await?;
        let Found { pod, name, run } = &found;
        let sandbox = pod.sandbox.as_ref();
        let told = json!({
            "id": run.id,
            "name": name,
            "attempt": run.attempt,
            "image": run.image,
            "imageRef": run.image_id,
            "startedAt": run.started_at.map(|at| at.to_string()),
            "state": state(run),
            "exitCode": run.exit.as_ref().map(|exit| exit.code),
            "pid": pid,
            "podId": sandbox.map(|sandbox| &sandbox.id),
            "podName": pod.name,
            "namespace": pod.namespace,
        });
        let row = [
            short(&run.id),
            &run.image,
            &run.started_at.map_or_else(String::new, age),
            state(run),
            name,
            &run.attempt.to_string(),
            &number(pid),
            &pod.name,
            &pod.namespace,
        ];
        table.add(&run.id, &row, &told);
    }
    table.print();
    Ok(())
}

fn wanted(list: &List) -> Result<Records> {
    let mut records = Records::read(&list.place.run_dir)?;
    if let Some(namespace) = &list.namespace {
        records.0.retain(|pod| pod.namespace == *namespace);
    }
    if let Some(begin) = &list.pod {
        let is_meant = |pod: &PodRecord| {
            let id = pod.sandbox.as_ref().map_or("", |sandbox| &sandbox.id);
            [pod.name.as_str(), id]
                .iter()
                .any(|it| it.starts_with(begin))
        };
        records.0.retain(is_meant);
    }
    Ok(records)
}

/// A sandbox's state, in crictl's words.
pub fn ready(pod: &PodRecord) -> &'static str {
    match pod.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready) {
        true => "Ready",
        false => "NotReady",
    }
}

fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

fn number(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| pid.to_string())
}

/// Since then, in the largest unit that has at least two of it.
fn age(since: Timestamp) -> String {
    let seconds = Timestamp::now().as_second() - since.as_second();
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Rows whose columns are as wide as their widest value; or ids, or JSON.
struct Table<'a> {
    list: &'a List,
    rows: Vec<Vec<String>>,
    lines: Vec<String>,
}

impl<'a> Table<'a> {
    fn new(list: &'a List, columns: &str) -> Self {
        Self {
            list,
            rows: vec![columns.split('|').map(str::to_owned).collect()],
            lines: Vec::new(),
        }
    }

    fn add(&mut self, id: &str, row: &[&str], told: &Value) {
        match (self.list.quiet, &self.list.output) {
            (true, _) => self.lines.push(id.to_owned()),
            (false, Some(_)) => self.lines.push(told.to_string()),
            (false, None) => {
                let filled = row.iter().map(|cell| match cell.is_empty() {
                    true => "-".to_owned(),
                    false => (*cell).to_owned(),
                });
                self.rows.push(filled.collect());
            }
        }
    }

    fn print(&self) {
        let is_table = !self.list.quiet && self.list.output.is_none();
        for line in &self.lines {
            println!("{line}");
        }
        for line in layout(&self.rows).iter().filter(|_| is_table) {
            println!("{line}");
        }
    }
}

fn layout(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            rows.iter()
                .map(|row| row[at].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells = cells.map(|(cell, width)| format!("{cell:<width$}   "));
        cells.collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_value() {
        let rows = [["A", "B"], ["long", "b"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(layout(&rows), ["A      B", "long   b"]);
    }
}
