//! A container without a pod, whose shim runs and has not been asked to create it yet.

use std::path::PathBuf;

use hpk_shim_client::{CreateRequest, Shim, Stdio, delete_binary};
use serde_json::json;

use crate::scene::{Scene, own_namespaces, spec};

pub struct Lone<'a> {
    scene: &'a Scene,
    pub shim: Shim,
    pub shim_pid: u32,
    pub id: String,
    bundle: PathBuf,
}

impl<'a> Lone<'a> {
    pub async fn new(scene: &'a Scene, id: String) -> Self {
        let spec = spec(&["sleep", "7654321"], own_namespaces(), json!({}));
        let bundle = scene.bundle(&id, &spec);
        let shim = Shim::start(&scene.bootstrap, &id, &bundle).await.unwrap();
        let shim_pid = shim.connection(&id).await.unwrap().shim_pid;
        Self {
            scene,
            shim,
            shim_pid,
            id,
            bundle,
        }
    }

    pub fn request(&self) -> CreateRequest {
        self.scene.request(&self.id, Stdio::default())
    }

    /// What the shim would need to find the container again is gone.
    pub fn is_forgotten(&self) -> bool {
        !self.bundle.join("hpk.json").exists()
    }

    /// Cleans up behind a dead shim.
    pub async fn clean_up(&self) {
        let cleaned = delete_binary(&self.scene.bootstrap, &self.id, &self.bundle).await;
        cleaned.unwrap();
        assert!(self.is_forgotten());
    }
}
