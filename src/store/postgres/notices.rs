//! A connection of its own that hears notifications.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::{Client, Notification};

use super::{
    connect::{Connector, Reason, Server},
    errors::{explain, within},
};
use crate::store::StoreError;

/// Hears what is said on the channels that it listens to, until the connection ends.
pub(crate) struct Notices {
    client: Client,
    server: Server,
    heard: mpsc::UnboundedReceiver<Notification>,
    limit: Duration,
}

/// A notification.
pub(crate) struct Notice {
    pub(crate) channel: String,
    pub(crate) payload: String,
    /// The process number of the backend that sent it.
    pub(crate) backend: i32,
}

impl Notices {
    /// Connects under `name`, by which the database knows who listens.
    pub(super) async fn connect(
        connector: &Connector,
        name: &str,
        limit: Duration,
    ) -> Result<Self, StoreError> {
        let (sender, heard) = mpsc::unbounded_channel();
        let named = |config: &mut tokio_postgres::Config| {
            config.application_name(name).keepalives_idle(Duration::from_secs(10));
        };
        let (client, server) = within(limit, connector.connect(named, Some(sender))).await?;
        Ok(Self { client, server, heard, limit })
    }

    /// Begins to listen.
    pub(crate) async fn listen(&self, channel: &str) -> Result<(), StoreError> {
        self.execute(&format!("LISTEN {channel}")).await
    }

    /// Finds out whether what is said is heard here: behind a pooler it may not be.
    pub(crate) async fn test(&mut self) -> Result<(), StoreError> {
        let channel = format!("keystile_test_{:016x}", rand::random::<u64>());
        self.execute(&format!("LISTEN {channel}; NOTIFY {channel}")).await?;
        let limit = self.limit;
        let heard = async {
            while self.next().await?.channel != channel {}
            Ok(())
        };
        within(limit, heard).await.map_err(|error| match error {
            StoreError::Timeout(_) => StoreError::Unfit(
                "notifications do not come through; where a pooler stands before Postgres, name a way past it by --change-feed-url".into(),
            ),
            error => error,
        })?;
        self.client.batch_execute(&format!("UNLISTEN {channel}")).await.map_err(|error| explain(&error))
    }

    /// The next notification.
    pub(crate) async fn next(&mut self) -> Result<Notice, StoreError> {
        let ended = || StoreError::Unavailable("the listening connection ended".into());
        loop {
            tokio::select! {
                heard = self.heard.recv() => {
                    let notice = heard.ok_or_else(ended)?;
                    return Ok(Notice {
                        channel: notice.channel().to_owned(),
                        payload: notice.payload().to_owned(),
                        backend: notice.process_id(),
                    });
                }
                reason = self.server.given_up() => match reason {
                    Reason::Changed => return Err(ended()),
                    // One that only has too much to do still answers this.
                    Reason::Silent => {
                        self.execute("").await?;
                        self.server.confirm();
                    }
                },
            }
        }
    }

    /// Notifies others, from this very connection.
    pub(crate) async fn notify(&self, channel: &str, payload: &str) -> Result<(), StoreError> {
        // Both are ours: names, numbers and commas.
        self.execute(&format!("NOTIFY {channel}, '{payload}'")).await
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        let executed = async { self.client.batch_execute(sql).await.map_err(|error| explain(&error)) };
        within(self.limit, executed).await
    }
}
