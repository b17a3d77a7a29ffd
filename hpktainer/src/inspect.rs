//! `hpktainer inspect`

use serde_json::{Value, json};

use crate::config::Config;
use crate::container::{self, Places, Record};
use crate::task::{self, Status};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names, ids, or beginnings of ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// A JSON list with an object for each container, keys as Docker has them.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    let mut all = Vec::new();
    for wanted in &args.containers {
        let record = container::find(config, wanted)?;
        let status = task::status(config, &record).await?;
        all.push(describe(&record, status, &Places::of(config, &record.id)));
    }
    println!("{}", serde_json::to_string_pretty(&all)?);
    Ok(0)
}

/// What is known of a container.
pub fn describe(record: &Record, status: Status, places: &Places) -> Value {
    let exit = match status {
        Status::Exited(code) => Some(code),
        _ => None,
    };
    json!({
        "Id": record.id,
        "Name": record.name,
        "Image": record.image,
        "Created": record.created,
        "State": {
            "Status": word(status),
            "Running": status == Status::Running,
            "ExitCode": exit,
        },
        "Config": { "Cmd": record.command, "StopSignal": record.stop_signal },
        "LogPath": record.logged.then(|| places.log()),
        "NetworkSettings": {
            "Interface": record.ip.as_ref().map(|_| crate::network::IFNAME),
            "IPAddress": record.ip,
            "Ports": record.ports,
        },
        "HostConfig": { "AutoRemove": record.auto_remove },
    })
}

/// A state's name, as Docker has it.
pub fn word(status: Status) -> &'static str {
    match status {
        Status::Created => "created",
        Status::Running => "running",
        Status::Exited(_) => "exited",
        Status::Lost => "dead",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_container_tells_its_code_and_a_running_one_none() {
        let record = container::tests::record("aa11", "web");
        let config = Config::from_env();
        let places = Places::of(&config, "aa11");
        let ended = describe(&record, Status::Exited(3), &places);
        assert_eq!(ended["State"]["ExitCode"], 3);
        assert_eq!(ended["State"]["Status"], "exited");
        let running = describe(&record, Status::Running, &places);
        assert_eq!(running["State"]["Running"], true);
        assert!(running["State"]["ExitCode"].is_null());
    }
}
