//! Which node is the set's primary, as the driver hears it from all of them.
//!
//! A stream goes on at the node where it was opened: one that stepped down tells what it hears itself,
//! and one that was stopped or cut off says nothing until the watchdog gives it up. The others say at
//! once that there is a new primary.

use std::future::pending;

use mongodb::ServerType;
use mongodb::event::EventHandler;
use mongodb::event::sdam::SdamEvent;
use mongodb::options::{ClientOptions, ServerAddress};
use tokio::sync::watch;

/// The primary that a driver knows of.
#[derive(Clone, Debug)]
pub(super) struct Primary(watch::Receiver<Option<ServerAddress>>);

impl Primary {
    /// Has the driver that is made with `options` tell.
    pub(super) fn watched(options: &mut ClientOptions) -> Self {
        let (tell, told) = watch::channel(None);
        options.sdam_event_handler = Some(EventHandler::callback(move |event| {
            let SdamEvent::TopologyDescriptionChanged(event) = event else { return };
            let servers = event.new_description.servers();
            let primary =
                servers.into_iter().find(|(_, info)| info.server_type() == ServerType::RsPrimary);
            let primary = primary.map(|(primary, _)| primary);
            tell.send_if_modified(|last| {
                let is_another = last.as_ref() != primary;
                if is_another {
                    *last = primary.cloned();
                }
                is_another
            });
        }));
        Self(told)
    }

    /// Waits until another node is the primary than at first.
    pub(super) async fn replaced(mut self) {
        let first = self.0.wait_for(Option::is_some).await.map(|first| first.clone());
        let is_another = |now: &Option<ServerAddress>| {
            now.is_some() && first.as_ref().is_ok_and(|first| now != first)
        };
        let another = self.0.wait_for(is_another);
        if another.await.is_err() {
            // The driver is gone, and nobody tells any more.
            pending::<()>().await;
        }
    }
}
