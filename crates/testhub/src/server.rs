//! The hub's addresses and answers.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request as HttpRequest, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::faults::take;
use crate::{Drip, Hub, Place, Request, Signature, lock};

/// What the hub lets a page of another origin see.
const EXPOSED: &str = "X-Repo-Commit,X-Request-Id,X-Error-Code,X-Error-Message,ETag,Link,Accept-Ranges,Content-Range,\
                       X-Linked-Size,X-Linked-ETag";

/// How much of a body is handed over at a time.
const PIECE: usize = 16 << 10;

type Shared = Arc<Mutex<Hub>>;

#[derive(Clone)]
struct Site {
    hub: Shared,
    address: SocketAddr,
}

pub(crate) fn router(hub: Shared, address: SocketAddr) -> Router {
    let site = Site { hub, address };
    Router::new()
        .route("/{org}/{name}/resolve/{revision}/{file}", get(resolve))
        .route("/api/resolve-cache/models/{org}/{name}/{commit}/{file}", get(small))
        .route("/api/models/{org}/{name}", get(about_main))
        .route("/api/models/{org}/{name}/revision/{revision}", get(about))
        .route("/cdn/{sha256}", get(large))
        .route("/log", get(log))
        .layer(from_fn_with_state(site.clone(), busy))
        .layer(from_fn(across_origins))
        .with_state(site)
}

/// Any page may read the answers, and ask for ranges.
async fn across_origins(request: HttpRequest, next: Next) -> Response {
    let mut response = match request.method() {
        &Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    let constant = axum::http::HeaderValue::from_static;
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, constant("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, constant("Range"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, constant(EXPOSED));
    response
}

/// Answers "later" as often as it was told to.
async fn busy(State(site): State<Site>, request: HttpRequest, next: Next) -> Response {
    let fault = {
        let mut hub = lock(&site.hub);
        hub.faults.busy.as_mut().and_then(|busy| take(&mut busy.times).then_some(*busy))
    };
    let Some(fault) = fault.filter(|_| request.uri().path() != "/log") else {
        return next.run(request).await;
    };
    let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let place = match request.uri().path() {
        path if path.starts_with("/cdn/") || path.starts_with("/api/resolve-cache/") => Place::Bytes,
        path if path.starts_with("/api/") => Place::Api,
        _ => Place::Hub,
    };
    let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    note(&site.hub, request.method(), request.headers(), place, &name, "", status);
    match fault.retry_after {
        Some(seconds) => (status, [(header::RETRY_AFTER, seconds.to_string())], "later").into_response(),
        None => (status, "later").into_response(),
    }
}

async fn log(State(site): State<Site>) -> Response {
    axum::Json(lock(&site.hub).log.clone()).into_response()
}

async fn about_main(
    site: State<Site>,
    method: Method,
    headers: HeaderMap,
    path: Path<(String, String)>,
) -> Response {
    let Path((org, name)) = path;
    about(site, method, headers, Path((org, name, "main".to_owned()))).await
}

async fn about(
    State(site): State<Site>,
    method: Method,
    headers: HeaderMap,
    Path((org, name, revision)): Path<(String, String, String)>,
) -> Response {
    let repository = format!("{org}/{name}");
    let found = find(&site.hub, &repository, &revision).map(|commit| {
        let hub = lock(&site.hub);
        let snapshot = hub.repositories.get(&repository).and_then(|found| found.commits.get(&commit));
        let siblings: Vec<_> =
            snapshot.into_iter().flatten().map(|(file, _)| json!({"rfilename": file})).collect();
        json!({"id": repository, "modelId": repository, "sha": commit, "siblings": siblings})
    });
    let status = if found.is_ok() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    note(&site.hub, &method, &headers, Place::Api, &repository, &revision, status);
    match found {
        Ok(about) => axum::Json(about).into_response(),
        Err(code) => missing(code),
    }
}

/// Where a file is.
async fn resolve(
    State(site): State<Site>,
    method: Method,
    headers: HeaderMap,
    Path((org, name, revision, file)): Path<(String, String, String, String)>,
) -> Response {
    let repository = format!("{org}/{name}");
    let note = |status| note(&site.hub, &method, &headers, Place::Hub, &file, &revision, status);
    let commit = match find(&site.hub, &repository, &revision) {
        Ok(commit) => commit,
        Err(code) => {
            // Who may not see a repository is not told whether there is one.
            let status =
                if code == "RepoNotFound" { StatusCode::UNAUTHORIZED } else { StatusCode::NOT_FOUND };
            note(status);
            return (status, [("x-error-code", code)], code).into_response();
        }
    };
    let (hidden, looping) = {
        let hub = lock(&site.hub);
        (hub.faults.hide_commit, hub.faults.redirect_loop)
    };
    let commit_header = if hidden { String::new() } else { commit.clone() };
    let Some(bytes) = content(&site.hub, &repository, &commit, &file) else {
        note(StatusCode::NOT_FOUND);
        let said = [("x-error-code", "EntryNotFound"), ("x-repo-commit", &commit_header)];
        return (StatusCode::NOT_FOUND, said, "Entry not found").into_response();
    };
    let linked = digest(&bytes);
    let (status, location) = if looping {
        (StatusCode::FOUND, format!("/{repository}/resolve/{revision}/{file}"))
    } else if file.ends_with(".json") || file.ends_with(".txt") {
        let location = format!("/api/resolve-cache/models/{repository}/{commit}/{file}");
        (StatusCode::TEMPORARY_REDIRECT, location)
    } else {
        let mut hub = lock(&site.hub);
        let signature = Signature { repository, commit, file: file.clone(), made: Instant::now(), uses: 0 };
        hub.signatures.push(signature);
        let (number, expires) = (hub.signatures.len() - 1, hub.faults.signature_age.unwrap_or(Duration::MAX));
        let address = site.address;
        let expires = expires.as_millis();
        (StatusCode::FOUND, format!("http://{address}/cdn/{linked}?signature={number}&expires={expires}"))
    };
    note(status);
    let said = [
        ("location", location),
        ("x-repo-commit", commit_header),
        ("x-linked-size", bytes.len().to_string()),
        ("x-linked-etag", format!("\"{linked}\"")),
        ("etag", format!("\"{linked}\"")),
        ("accept-ranges", "bytes".to_owned()),
    ];
    (status, said, "").into_response()
}

/// A small file.
async fn small(
    State(site): State<Site>,
    method: Method,
    headers: HeaderMap,
    Path((org, name, commit, file)): Path<(String, String, String, String)>,
) -> Response {
    let repository = format!("{org}/{name}");
    let hidden = lock(&site.hub).faults.hide_commit;
    let Some(bytes) = content(&site.hub, &repository, &commit, &file) else {
        return missing("EntryNotFound");
    };
    let mut response = send(&site.hub, &method, &headers, &file, &commit, &bytes);
    if !hidden && let Ok(value) = commit.parse() {
        response.headers_mut().insert("x-repo-commit", value);
    }
    response
}

#[derive(Deserialize)]
struct Signed {
    signature: usize,
}

/// A large file, for whoever has a signature.
async fn large(
    State(site): State<Site>,
    method: Method,
    headers: HeaderMap,
    Query(signed): Query<Signed>,
    Path(sha256): Path<String>,
) -> Response {
    let found = {
        let mut hub = lock(&site.hub);
        let (uses, age) = (hub.faults.signature_uses, hub.faults.signature_age);
        hub.signatures.get_mut(signed.signature).map(|signature| {
            let good = uses.is_none_or(|uses| signature.uses < uses)
                && age.is_none_or(|age| signature.made.elapsed() < age);
            signature.uses += 1;
            (good, signature.repository.clone(), signature.commit.clone(), signature.file.clone())
        })
    };
    let denied = (StatusCode::FORBIDDEN, "<Error><Code>AccessDenied</Code></Error>");
    let Some((good, repository, commit, file)) = found else { return denied.into_response() };
    let bytes = content(&site.hub, &repository, &commit, &file).filter(|bytes| digest(bytes) == sha256);
    match bytes {
        Some(bytes) if good => send(&site.hub, &method, &headers, &file, &commit, &bytes),
        _ => {
            note(&site.hub, &method, &headers, Place::Bytes, &file, &commit, StatusCode::FORBIDDEN);
            denied.into_response()
        }
    }
}

/// The bytes, or what the faults make of them.
fn send(
    hub: &Shared,
    method: &Method,
    headers: &HeaderMap,
    file: &str,
    commit: &str,
    bytes: &Bytes,
) -> Response {
    let tag = digest(bytes);
    let size = bytes.len();
    let mut state = lock(hub);
    let faults = &mut state.faults;
    let mut bytes = bytes.clone();
    if let Some((_, at)) = faults.changed_byte.as_ref().filter(|(changed, _)| changed == file) {
        let mut changed = bytes.to_vec();
        if let Some(byte) = usize::try_from(*at).ok().and_then(|at| changed.get_mut(at)) {
            *byte ^= 1;
        }
        bytes = changed.into();
    }
    let range = range(headers).filter(|_| !faults.whole_files);
    let (status, part, content_range) = match range {
        None => (StatusCode::OK, bytes, None),
        Some(range) if range.start >= size as u64 || range.is_empty() => {
            (StatusCode::RANGE_NOT_SATISFIABLE, Bytes::new(), Some(format!("bytes */{size}")))
        }
        Some(mut range) => {
            range.end = range.end.min(size as u64);
            if range.end < size as u64 && take(&mut faults.shifted_ranges) {
                range = range.start + 1..range.end + 1;
            }
            let said = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            if range.end < size as u64 && take(&mut faults.too_long) {
                range.end += 1;
            }
            let whole = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            (StatusCode::PARTIAL_CONTENT, bytes.slice(whole(range.start)..whole(range.end)), Some(said))
        }
    };
    let bodied = method != Method::HEAD && status != StatusCode::RANGE_NOT_SATISFIABLE;
    let cut = faults.cut.as_mut().and_then(|cut| (bodied && take(&mut cut.times)).then_some(cut.after));
    let drip = faults.drip.as_mut().and_then(|drip| (bodied && take(&mut drip.times)).then_some(*drip));
    drop(state);
    let entry = note(hub, method, headers, Place::Bytes, file, commit, status);

    let mut response = Response::builder()
        .status(status)
        .header(header::ETAG, format!("\"{tag}\""))
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, part.len());
    if let Some(said) = content_range {
        response = response.header(header::CONTENT_RANGE, said);
    }
    let body = if bodied { pour(Arc::clone(hub), entry, part, cut, drip) } else { Body::empty() };
    response.body(body).unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// A body piece by piece, each noted when it is taken; an error where it is to be cut.
fn pour(hub: Shared, entry: usize, part: Bytes, cut: Option<u64>, drip: Option<Drip>) -> Body {
    let (piece, pause) = drip.map_or((PIECE, Duration::ZERO), |drip| (drip.bytes.max(1), drip.every));
    let end = cut.map_or(part.len(), |cut| usize::try_from(cut).unwrap_or(usize::MAX).min(part.len()));
    let state = (0, false);
    Body::from_stream(stream::unfold(state, move |(at, ended)| {
        let (hub, part) = (Arc::clone(&hub), part.clone());
        async move {
            if ended || (at == end && cut.is_none()) {
                return None;
            }
            if at == end {
                // What went before has to leave the machine first.
                tokio::time::sleep(Duration::from_millis(30)).await;
                return Some((Err(io::Error::from(io::ErrorKind::ConnectionAborted)), (at, true)));
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let next = (at + piece).min(end);
            if let Some(request) = lock(&hub).log.get_mut(entry) {
                request.sent += (next - at) as u64;
            }
            Some((Ok(part.slice(at..next)), (next, false)))
        }
    }))
}

/// The commit that a revision is, or the hub's error code.
fn find(hub: &Shared, repository: &str, revision: &str) -> Result<String, &'static str> {
    let hub = lock(hub);
    let repository = hub.repositories.get(repository).ok_or("RepoNotFound")?;
    match repository.branches.get(revision) {
        Some(commit) => Ok(commit.clone()),
        None if repository.commits.contains_key(revision) => Ok(revision.to_owned()),
        None => Err("RevisionNotFound"),
    }
}

fn content(hub: &Shared, repository: &str, commit: &str, file: &str) -> Option<Bytes> {
    lock(hub).repositories.get(repository)?.commits.get(commit)?.get(file).cloned()
}

fn missing(code: &'static str) -> Response {
    (StatusCode::NOT_FOUND, [("x-error-code", code)], code).into_response()
}

/// `Range: bytes=first-last`, the one form that a model is read by.
fn range(headers: &HeaderMap) -> Option<Range<u64>> {
    let (first, last) = headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?)
}

/// Writes down what was asked; gives the entry's place.
fn note(
    hub: &Shared,
    method: &Method,
    headers: &HeaderMap,
    place: Place,
    name: &str,
    revision: &str,
    status: StatusCode,
) -> usize {
    let mut hub = lock(hub);
    hub.log.push(Request {
        method: method.to_string(),
        place,
        name: name.to_owned(),
        revision: revision.to_owned(),
        range: range(headers),
        status: status.as_u16(),
        sent: 0,
    });
    hub.log.len() - 1
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
