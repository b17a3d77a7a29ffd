//! `hpktainer inspect`

use anyhow::{Context as _, bail};
use hpk_images::{Image, Reference, Store};
use serde_json::{Value, json};

use crate::config::Config;
use crate::container::{self, Places, Record};
use crate::format::{Format, print};
use crate::task::{self, Status};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names, ids or beginnings of ids of containers; references, digests or ids of images that are here
    #[arg(required = true, value_name = "CONTAINER|IMAGE")]
    wanted: Vec<String>,
    /// Instead of all: json, for an object on a line of its own; or a template, e.g. {{.State.Status}}
    #[arg(short, long)]
    format: Option<Format>,
    /// Only of this kind
    #[arg(long, value_parser = ["container", "image"])]
    r#type: Option<String>,
}

/// A JSON list with an object for each, keys as Docker has them. What is not there is told, and the rest told of.
pub async fn main(config: &Config, args: Args) -> anyhow::Result<u8> {
    let mut all = Vec::new();
    let code = container::each(&args.wanted, async |wanted| {
        all.push(find(config, wanted, args.r#type.as_deref()).await?);
        Ok(())
    })
    .await?;
    match &args.format {
        None => print(serde_json::to_string_pretty(&all)?)?,
        Some(format) => {
            for object in &all {
                print(format.line(object)?)?;
            }
        }
    }
    Ok(code)
}

async fn find(config: &Config, wanted: &str, kind: Option<&str>) -> anyhow::Result<Value> {
    let container = match kind {
        Some("image") => None,
        _ => container::search(config, wanted)?,
    };
    if let Some(record) = container {
        let status = task::status(config, &record).await?;
        return Ok(describe(&record, status, &Places::of(config, &record.id)));
    }
    let image = match kind {
        Some("container") => None,
        _ => {
            let store = Store::open(crate::config::store()?).await?;
            find_image(&store, wanted).await?
        }
    };
    match (image, kind) {
        (Some(image), _) => describe_image(&image),
        (None, Some(kind)) => bail!("no {kind} {wanted:?}"),
        (None, None) => bail!("neither a container nor an image {wanted:?}"),
    }
}

/// The image of the store that is called so, or whose digest or id begins so.
pub async fn find_image(store: &Store, wanted: &str) -> anyhow::Result<Option<Image>> {
    if let Ok(reference) = wanted.parse::<Reference>()
        && let Some(image) = store.find(&reference).await?
    {
        return Ok(Some(image));
    }
    const SHORTEST: usize = 6;
    let begin = wanted.trim_start_matches("sha256:");
    if begin.len() < SHORTEST || !begin.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let begins = |digest: &str| digest.trim_start_matches("sha256:").starts_with(begin);
    let is_meant = |image: &Image| begins(&image.digest) || begins(&image.config_digest);
    let mut meant: Vec<Image> = store.list().await?.into_iter().filter(is_meant).collect();
    // One that has several names is there as often.
    meant.sort_by(|a, b| a.digest.cmp(&b.digest));
    meant.dedup_by(|a, b| a.digest == b.digest);
    match (meant.pop(), meant.is_empty()) {
        (Some(image), false) => {
            meant.push(image);
            let digests: Vec<&str> = meant.iter().map(|image| image.digest.as_str()).collect();
            bail!(
                "{wanted} is more than one image, by digest: {}",
                digests.join(", ")
            )
        }
        (only, _) => Ok(only),
    }
}

fn describe_image(image: &Image) -> anyhow::Result<Value> {
    let config = serde_json::to_value(&image.config).context("writing the image's config")?;
    let digest = image.reference.with_digest(&image.digest);
    Ok(json!({
        "Id": image.config_digest,
        "RepoTags": [image.reference.to_string()],
        "RepoDigests": [digest.to_string()],
        "Created": config["created"],
        "Author": config["author"],
        "Architecture": config["architecture"],
        "Os": config["os"],
        "Size": image.size,
        "Config": config["config"],
        "RootFS": { "Type": "layers", "Layers": config["rootfs"]["diff_ids"] },
        "GraphDriver": { "Name": "squashfs", "Data": { "File": image.sqfs } },
    }))
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

    #[test]
    fn an_image_is_told_of_as_by_docker() {
        let mut config = hpk_images::ImageConfiguration::default();
        let mut inner = oci_spec::image::Config::default();
        inner.set_cmd(Some(vec!["sh".to_owned()]));
        config.set_config(Some(inner));
        let digest = format!("sha256:{}", "a".repeat(64));
        let told = describe_image(&Image {
            reference: "busybox:1".parse().unwrap(),
            digest: digest.clone(),
            config,
            config_digest: "sha256:b".to_owned(),
            sqfs: "/s".into(),
            size: 7,
        })
        .unwrap();
        assert_eq!(told["Config"]["Cmd"][0], "sh");
        assert_eq!(told["Id"], "sha256:b");
        let by_digest = told["RepoDigests"][0].as_str().unwrap();
        assert!(by_digest.ends_with(&digest), "{by_digest}");
    }
}
