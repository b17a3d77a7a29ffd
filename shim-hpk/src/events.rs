//! Events to the caller, in order, one after the other.

use containerd_shim::{
    Context, event::Event, protos::protobuf::MessageDyn, publisher::RemotePublisher,
};
use tokio::sync::mpsc;

/// Where events go; cheap to clone. Sending never waits.
#[derive(Debug, Clone)]
pub struct Events {
    sender: mpsc::UnboundedSender<(String, Box<dyn MessageDyn>)>,
}

impl Events {
    /// Publishes what is sent from now on.
    pub fn start(publisher: RemotePublisher, namespace: String) -> Self {
        let (sender, mut receiver) = mpsc::unbounded_channel::<(String, Box<dyn MessageDyn>)>();
        tokio::spawn(async move {
            while let Some((topic, event)) = receiver.recv().await {
                if let Err(e) = publisher
                    .publish(Context::default(), &topic, &namespace, event)
                    .await
                {
                    // An event is a hint; Wait and State are the truth.
                    log::warn!("publish {topic}: {e}");
                }
            }
        });
        Self { sender }
    }

    /// Sends one.
    pub fn send(&self, event: impl Event) {
        let topic = event.topic();
        // The receiver goes only with the shim.
        let _ = self.sender.send((topic, Box::new(event)));
    }
}
