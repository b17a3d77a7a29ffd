//! The default StorageClass: a claim gets a folder of the shared file system, which every node sees.
//! Run on the first node, with the administrator's certificate.
//!
//! - `plan`: what a claim gets, and which volume goes
//! - here: making and removing them; what fails is tried again
//!
//! # Guarantees
//!
//! A volume's folder is there before the volume is, and gone before it goes. Only folders below the
//! cluster's own are ever removed.

mod plan;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher;
use kube::{Api, Client, Resource as _, ResourceExt as _};

/// After a failure.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't {action} {name}")]
    Api {
        action: &'static str,
        name: String,
        #[source]
        source: kube::Error,
    },
    #[error("can't put volume {name} together")]
    Volume {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("can't {action} {}", .path.display())]
    Folder {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

struct Context {
    client: Client,
    /// The cluster's folder for volumes.
    root: PathBuf,
    recorder: Recorder,
}

/// The StorageClass that claims get who name none.
pub async fn apply_class(client: &Client) -> Result<(), Error> {
    let api: Api<StorageClass> = Api::all(client.clone());
    let params = PatchParams::apply("hpk-bubble").force();
    api.patch(plan::CLASS, &params, &Patch::Apply(plan::class()))
        .await
        .map(drop)
        .map_err(api_error("apply StorageClass", plan::CLASS))
}

/// Provides and removes volumes for ever; `root`: their folder.
pub async fn run(client: Client, root: PathBuf) {
    let reporter = Reporter {
        controller: plan::PROVISIONER.to_owned(),
        instance: None,
    };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client: client.clone(),
        root,
    });
    let claims = Controller::new(
        Api::<PersistentVolumeClaim>::all(client.clone()),
        watcher::Config::default(),
    )
    .run(
        provide,
        |claim, error, _| again(&claim.name_any(), error),
        Arc::clone(&context),
    );
    let volumes = Controller::new(
        Api::<PersistentVolume>::all(client),
        watcher::Config::default(),
    )
    .run(
        remove,
        |volume, error, _| again(&volume.name_any(), error),
        context,
    );
    // What went wrong has been told, and is tried again.
    let claims = claims.for_each(|_| std::future::ready(()));
    let volumes = volumes.for_each(|_| std::future::ready(()));
    futures::future::join(claims, volumes).await;
}

fn again(name: &str, error: &Error) -> Action {
    let error: &dyn std::error::Error = error;
    let cause = error.source().map(|cause| format!(": {cause}"));
    eprintln!(
        "hpk-bubble: volumes: {name}: {error}{}",
        cause.unwrap_or_default()
    );
    Action::requeue(AGAIN)
}

async fn provide(
    claim: Arc<PersistentVolumeClaim>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let Some(class) = plan::class_of(&claim) else {
        return Ok(Action::await_change());
    };
    let classes: Api<StorageClass> = Api::all(context.client.clone());
    let class = classes
        .get(class)
        .await
        .map_err(api_error("read StorageClass", class))?;
    let wanted = match plan::volume(&claim, &class, &context.root) {
        Ok(wanted) => wanted,
        Err(refusal) => {
            tell(&context, &claim, &refusal).await?;
            return Ok(Action::await_change());
        }
    };
    make_folder(&context.root, &wanted.folder)?;
    let name = claim.name_any();
    let volume: PersistentVolume =
        serde_json::from_value(wanted.volume).map_err(|source| Error::Volume { name, source })?;
    let name = volume.name_any();
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    match volumes.create(&PostParams::default(), &volume).await {
        // Made before, and not yet bound.
        Err(kube::Error::Api(answer)) if answer.is_already_exists() => {}
        made => drop(made.map_err(api_error("make volume", &name))?),
    }
    Ok(Action::await_change())
}

async fn tell(
    context: &Context,
    claim: &PersistentVolumeClaim,
    refusal: &plan::Refusal,
) -> Result<(), Error> {
    let event = Event {
        type_: EventType::Warning,
        reason: "ProvisioningFailed".to_owned(),
        note: Some(format!("failed to provision volume: {refusal}")),
        action: "Provisioning".to_owned(),
        secondary: None,
    };
    let about = claim.object_ref(&());
    context
        .recorder
        .publish(&event, &about)
        .await
        .map_err(api_error("tell of claim", &claim.name_any()))
}

async fn remove(volume: Arc<PersistentVolume>, context: Arc<Context>) -> Result<Action, Error> {
    let Some(folder) = plan::released(&volume, &context.root) else {
        return Ok(Action::await_change());
    };
    let path = folder.clone();
    let removed = tokio::task::spawn_blocking(move || match fs::remove_dir_all(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    });
    removed
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(folder_error("remove", &folder))?;
    let name = volume.name_any();
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    match volumes.delete(&name, &DeleteParams::default()).await {
        Err(kube::Error::Api(answer)) if answer.is_not_found() => {}
        gone => drop(gone.map_err(api_error("delete volume", &name))?),
    }
    Ok(Action::await_change())
}

/// `root` for its owner alone, and in it the volume's folder, for whatever user a pod runs as.
fn make_folder(root: &Path, folder: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .map_err(folder_error("make", root))?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(folder_error("make", folder)(error));
        }
        _ => {}
    }
    fs::set_permissions(folder, Permissions::from_mode(0o777))
        .map_err(folder_error("set the mode of", folder))
}

fn api_error(action: &'static str, name: &str) -> impl FnOnce(kube::Error) -> Error {
    let name = name.to_owned();
    move |source| Error::Api {
        action,
        name,
        source,
    }
}

fn folder_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Folder {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volumes_folder_is_open_to_its_pods_in_a_closed_one() {
        let dir = tempfile::tempdir().unwrap();
        let (root, folder) = (dir.path().join("v/1"), dir.path().join("v/1/x"));
        make_folder(&root, &folder).unwrap();
        make_folder(&root, &folder).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&root), mode(&folder)), (0o700, 0o777));
    }
}
