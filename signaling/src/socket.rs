//! One WebSocket: frames in to the hub, its queue out to the client.

use crate::{
    frame,
    hub::Hub,
    outbox::{End, Next, Outbox},
    refusal::Refusal,
    rooms::{ClientId, Closing, Event},
};
use axum::{
    extract::{
        ConnectInfo, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    response::Response,
};
use baton_protocol::signal::ErrorCode;
use futures::{Sink, SinkExt, Stream, StreamExt};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tungstenite::Error as WsError;

/// How long a client that was told to go has to read that.
const LINGER: Duration = Duration::from_secs(2);

/// tungstenite takes 128 KiB a socket if not told otherwise; a message here is mostly a few KB.
const READ_BUFFER: usize = 8 * 1024;

/// `GET /ws`.
pub(crate) async fn upgrade(
    State(hub): State<Arc<Hub>>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    upgrade: WebSocketUpgrade,
) -> Response {
    // A message that is only somewhat too long is read whole, for the error to reach its sender: a socket closed on
    // unread data resets the connection, and what was on its way is lost.
    let most = hub.message_bytes.saturating_mul(2);
    upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(most + READ_BUFFER)
        .max_message_size(most)
        .max_frame_size(most)
        .on_upgrade(move |socket| converse(socket, hub, address.ip()))
}

async fn converse(socket: WebSocket, hub: Arc<Hub>, address: IpAddr) {
    let (client, outbox) = hub.open(address);
    let (sink, stream) = socket.split();
    let both = async { tokio::join!(listen(stream, &hub, client), speak(sink, &outbox)) };
    let ended = async {
        if outbox.ended().await != End::Abort {
            tokio::time::sleep(LINGER).await;
        }
    };
    tokio::select! {
        _ = both => {}
        () = ended => {}
    }
    hub.close(client);
}

/// Hands frames to the hub until the client is gone or cannot be understood any more.
async fn listen(
    mut stream: impl Stream<Item = Result<Message, axum::Error>> + Unpin,
    hub: &Hub,
    client: ClientId,
) {
    while let Some(frame) = stream.next().await {
        let event = match frame {
            Ok(Message::Text(text)) => match frame::parse(&text, hub.message_bytes) {
                Ok(message) => Event::Message { client, message },
                Err(refusal) => Event::Unreadable { client, refusal },
            },
            Ok(Message::Binary(bytes)) => {
                Event::Unreadable { client, refusal: Refusal::Binary { len: bytes.len() } }
            }
            Ok(Message::Ping(_) | Message::Pong(_)) => Event::Beat { client },
            Ok(Message::Close(_)) => continue,
            Err(error) => match unreadable(error, hub.message_bytes) {
                // It can still be told why: `speak` does, and ends.
                Some(refusal) => return hub.handle(Event::Unreadable { client, refusal }),
                None => break,
            },
        };
        hub.handle(event);
    }
    hub.close(client);
}

/// What a client did wrong, if the error is its frame's and not the connection's.
fn unreadable(error: axum::Error, limit: usize) -> Option<Refusal> {
    match *error.into_inner().downcast::<WsError>().ok()? {
        WsError::Capacity(_) => Some(Refusal::TooLarge { limit }),
        WsError::Utf8(_) => Some(Refusal::Malformed { reason: "it is not UTF-8".to_owned() }),
        _ => None,
    }
}

/// Writes the queue out until it ends or the client is gone.
async fn speak(mut sink: impl Sink<Message> + Unpin, outbox: &Outbox) {
    loop {
        let frame = match outbox.next().await {
            Next::Text(text) => Message::Text(text),
            Next::End(End::Abort) => return,
            Next::End(End::Close(why)) => {
                // If it fails, the client is gone, which is what was wanted.
                let _ = sink.send(Message::Close(Some(farewell(why)))).await;
                return;
            }
        };
        if sink.send(frame).await.is_err() {
            return;
        }
    }
}

fn farewell(why: Closing) -> CloseFrame {
    let (code, reason) = match why {
        Closing::Left => (close_code::NORMAL, "left"),
        Closing::Refused(ErrorCode::HostLeft) => (close_code::NORMAL, "the host left"),
        Closing::Refused(ErrorCode::ShuttingDown) => (close_code::AWAY, "the server is shutting down"),
        Closing::Refused(_) => (close_code::POLICY, "refused"),
        Closing::Silent => (close_code::POLICY, "nothing was heard for too long"),
        Closing::Stuck => (close_code::POLICY, "nothing was read for too long"),
    };
    CloseFrame { code, reason: reason.into() }
}
