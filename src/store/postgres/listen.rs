//! A separate connection that receives notifications.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::{Client, Notification};

use super::{
    connector::PostgresConnector,
    error::{explain, within},
    server::{AbandonReason, Server},
};
use crate::store::StoreError;

/// Receives the notifications of the channels that it listens to, until the connection ends.
pub(super) struct NotificationListener {
    client: Client,
    server: Server,
    notifications: mpsc::UnboundedReceiver<Notification>,
    limit: Duration,
}

/// A notification.
pub(super) struct Notice {
    channel: String,
    pub(super) payload: String,
    /// The process number of the backend that sent it.
    pub(super) backend: i32,
}

impl NotificationListener {
    /// Connects under `name`, by which the database identifies the listener.
    pub(super) async fn connect(
        connector: &PostgresConnector,
        name: &str,
        limit: Duration,
    ) -> Result<Self, StoreError> {
        let (sender, notifications) = mpsc::unbounded_channel();
        let named = |config: &mut tokio_postgres::Config| {
            config.application_name(name).keepalives_idle(Duration::from_secs(10));
        };
        let (client, server) = within(limit, connector.connect(named, Some(sender))).await?;
        Ok(Self { client, server, notifications, limit })
    }

    /// Begins to listen.
    pub(super) async fn listen(&self, channel: &str) -> Result<(), StoreError> {
        self.execute(&format!("LISTEN {channel}")).await
    }

    /// Verifies that notifications arrive here: behind a pooler they may not.
    pub(super) async fn test(&mut self) -> Result<(), StoreError> {
        let channel = format!("keystile_test_{:016x}", rand::random::<u64>());
        self.execute(&format!("LISTEN {channel}; NOTIFY {channel}")).await?;
        let limit = self.limit;
        let arrives = async {
            while self.next().await?.channel != channel {}
            Ok(())
        };
        within(limit, arrives).await.map_err(|error| match error {
            StoreError::Timeout(_) => StoreError::Unfit(
                "notifications do not arrive; if there is a pooler before Postgres, set --change-feed-url to a URL that bypasses it".into(),
            ),
            error => error,
        })?;
        self.client.batch_execute(&format!("UNLISTEN {channel}")).await.map_err(|error| explain(&error))
    }

    /// The next notification.
    pub(super) async fn next(&mut self) -> Result<Notice, StoreError> {
        let ended = || StoreError::Unavailable("the listening connection ended".into());
        loop {
            tokio::select! {
                notice = self.notifications.recv() => {
                    let notice = notice.ok_or_else(ended)?;
                    return Ok(Notice {
                        channel: notice.channel().to_owned(),
                        payload: notice.payload().to_owned(),
                        backend: notice.process_id(),
                    });
                }
                reason = self.server.abandoned() => match reason {
                    AbandonReason::RoleChanged => return Err(ended()),
                    // A server that is only overloaded still answers this.
                    AbandonReason::Unresponsive => {
                        self.execute("").await?;
                        self.server.confirm();
                    }
                },
            }
        }
    }

    /// Notifies others, from this connection.
    pub(super) async fn notify(&self, channel: &str, payload: &str) -> Result<(), StoreError> {
        // Keystile wrote both: names, numbers and commas.
        self.execute(&format!("NOTIFY {channel}, '{payload}'")).await
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        let executed = async { self.client.batch_execute(sql).await.map_err(|error| explain(&error)) };
        within(self.limit, executed).await
    }
}
