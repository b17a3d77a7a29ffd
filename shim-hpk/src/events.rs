//! Events to the caller: in order, one after the other, each until the caller has it or five
//! attempts failed (an event is a hint; Wait and State are the truth).

use std::time::{Duration, SystemTime};

use containerd_shim::protos::{
    events::task::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
        TaskResumed, TaskStart,
    },
    protobuf::{Message, well_known_types::any::Any},
    shim::{event::Envelope, events::ForwardRequest},
    shim_async::{Client, EventsClient},
    ttrpc,
};
use tokio::sync::{mpsc, oneshot};

use crate::bootstrap::timestamp;

const ATTEMPTS: u32 = 5;
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// How long the last events may take at the shim's end.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A message of containerd's with its topic. (The names are constants here because asking the
/// message for its own costs a megabyte of descriptors.)
pub trait Event: Message {
    const TOPIC: &'static str;
    const TYPE: &'static str;
}

macro_rules! events {
    ($($message:ident $topic:literal)*) => {$(
        impl Event for $message {
            const TOPIC: &'static str = concat!("/tasks/", $topic);
            const TYPE: &'static str = concat!("containerd.events.", stringify!($message));
        }
    )*};
}
events! {
    TaskCreate "create"
    TaskStart "start"
    TaskExecAdded "exec-added"
    TaskExecStarted "exec-started"
    TaskPaused "paused"
    TaskResumed "resumed"
    TaskOOM "oom"
    TaskExit "exit"
    TaskDelete "delete"
}

/// Where events go; cheap to clone. Sending never waits.
#[derive(Debug, Clone)]
pub struct Events {
    namespace: String,
    sender: mpsc::UnboundedSender<Item>,
}

enum Item {
    Event(Box<Envelope>),
    /// All before it has been published.
    Flush(oneshot::Sender<()>),
}

impl Events {
    /// Publishes at `address` what is sent from now on.
    pub fn start(address: String, namespace: String) -> Self {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut publisher = Publisher {
                address,
                client: None,
            };
            while let Some(item) = receiver.recv().await {
                match item {
                    Item::Event(envelope) => publisher.publish(*envelope).await,
                    // Whoever asked may have given up.
                    Item::Flush(done) => done.send(()).unwrap_or_default(),
                }
            }
        });
        Self { namespace, sender }
    }

    /// Waits until everything sent so far is published, or the limit is over.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let asked = self.sender.send(Item::Flush(done)).is_ok();
        if !asked || tokio::time::timeout(FLUSH_LIMIT, flushed).await.is_err() {
            log::warn!("events are left unpublished");
        }
    }

    /// Sends one.
    pub fn send<E: Event>(&self, event: &E) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(e) => return log::error!("encode {}: {e}", E::TYPE),
        };
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: Some(Any {
                type_url: E::TYPE.to_owned(),
                value,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        if self.sender.send(Item::Event(Box::new(envelope))).is_err() {
            log::error!("{} after the publisher's end", E::TYPE);
        }
    }
}

struct Publisher {
    address: String,
    client: Option<EventsClient>,
}

impl Publisher {
    async fn publish(&mut self, envelope: Envelope) {
        let request = ForwardRequest {
            envelope: Some(envelope).into(),
            ..Default::default()
        };
        let mut delay = FIRST_DELAY;
        for attempt in 1..=ATTEMPTS {
            let Err(e) = self.forward(&request).await else {
                return;
            };
            log::warn!(
                "publish {} (attempt {attempt}): {e}",
                request.envelope.topic
            );
            self.client = None;
            if attempt < ATTEMPTS {
                tokio::time::sleep(delay).await;
                delay *= 2;
            }
        }
        log::error!("event {} is lost", request.envelope.topic);
    }

    async fn forward(&mut self, request: &ForwardRequest) -> ttrpc::Result<()> {
        let client = match &self.client {
            Some(client) => client,
            None => {
                let socket = self.address.trim_start_matches("unix://");
                let connected = Client::connect(&format!("unix://{socket}")).await?;
                self.client.insert(EventsClient::new(connected))
            }
        };
        let context = ttrpc::context::with_duration(ANSWER_LIMIT);
        client.forward(context, request).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim::{event::Event as TheirEvent, protos::protobuf::MessageFull};

    use super::*;

    fn names_match<E: Event + TheirEvent + MessageFull>() {
        assert_eq!(E::default().topic(), E::TOPIC);
        assert_eq!(E::descriptor().full_name(), E::TYPE);
    }

    #[test]
    fn names_and_topics_are_containerds() {
        names_match::<TaskCreate>();
        names_match::<TaskStart>();
        names_match::<TaskExecAdded>();
        names_match::<TaskExecStarted>();
        names_match::<TaskPaused>();
        names_match::<TaskResumed>();
        names_match::<TaskOOM>();
        names_match::<TaskExit>();
        names_match::<TaskDelete>();
    }
}
