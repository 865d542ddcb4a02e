//! Requests through ureq, each on a thread of its own, so that whoever waits for one is free for others.

use std::io::Read;
use std::sync::OnceLock;
use std::time::Duration;

use futures::channel::oneshot;
use ureq::ResponseExt;

use super::{Answer, Ask, End};

/// Sends one request and reads its answer; neither its headers nor its body may take longer than `time` to come.
pub(in crate::files) async fn fetch(url: &str, ask: &Ask, time: Duration) -> Result<Answer, String> {
    let (url, ask) = (url.to_owned(), ask.clone());
    on_a_thread(move || fetch_now(&url, &ask, time)).await?
}

/// Waits.
pub(in crate::files) async fn sleep(time: Duration) {
    // Without a thread there is no waiting.
    let _ = on_a_thread(move || std::thread::sleep(time)).await;
}

/// A thread costs nothing beside what it waits for.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("fetch".to_owned()).spawn(move || {
        // Whoever asked may have given up.
        let _ = sender.send(work());
    });
    thread.map_err(|error| format!("no thread could be started: {error}"))?;
    receiver.await.map_err(|_| "the request broke off".to_owned())
}

fn fetch_now(url: &str, ask: &Ask, time: Duration) -> Result<Answer, String> {
    let request = match ask {
        Ask::Head => agent().head(url),
        _ => agent().get(url),
    };
    let request = match ask.range_header() {
        Some(range) => request.header("Range", range),
        None => request,
    };
    let mut config = request.config().timeout_recv_response(Some(time)).timeout_recv_body(Some(time));
    if matches!(ask, Ask::Unfollowed) {
        config = config.max_redirects(0);
    }
    let response = config.build().call().map_err(|error| match error {
        ureq::Error::Timeout(_) => format!("no answer in {} seconds", time.as_secs_f32()),
        ureq::Error::TooManyRedirects => "it is redirected in a circle".to_owned(),
        error => error.to_string(),
    })?;
    let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
    let mut answer = Answer::new(response.status().as_u16(), header);
    let target = response.get_uri().to_string();
    answer.target = (target != url).then_some(target);
    let limit = ask.body_limit(answer.status);
    if limit == 0 {
        return Ok(answer);
    }
    if answer.content_length.is_some_and(|length| length > limit) {
        answer.end = End::Excess;
        return Ok(answer);
    }
    let mut reader = response.into_body().into_reader().take(limit.saturating_add(1));
    // What was read before an error stays in the body.
    if let Err(error) = reader.read_to_end(&mut answer.body) {
        let timeout = error.kind() == std::io::ErrorKind::TimedOut || error.to_string().contains("timeout");
        let slow = || format!("it was not all there after {} seconds", time.as_secs_f32());
        answer.end = End::Cut(if timeout { slow() } else { error.to_string() });
    } else if answer.body.len() as u64 > limit {
        answer.end = End::Excess;
    }
    Ok(answer)
}

/// One agent keeps its connections open between the many ranges of one file.
fn agent() -> &'static ureq::Agent {
    static AGENT: OnceLock<ureq::Agent> = OnceLock::new();
    AGENT.get_or_init(|| {
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .user_agent(concat!("baton/", env!("CARGO_PKG_VERSION")))
            .build()
            .into()
    })
}
