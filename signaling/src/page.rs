//! The built page: files by name and byte range, with the headers that a browser needs to trust and keep them.

use axum::{
    Router,
    extract::{Request, State},
    handler::Handler as _,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};
use tower_http::services::ServeDir;

/// What every answer says.
///
/// COEP is `credentialless`, not `require-corp`: both make the page cross-origin isolated (shared memory, for a
/// threaded engine), but the latter would also want CORP headers of model hubs for what is fetched without CORS.
/// Safari does not know it, and goes without shared memory.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::VARY, HeaderValue::from_static("accept-encoding")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-embedder-policy"), HeaderValue::from_static("credentialless")),
];

/// The page under `dist`, which may be built later than the server starts.
pub(crate) fn routes(dist: PathBuf) -> Router {
    let dist: Arc<Path> = dist.into();
    let files = ServeDir::new(&dist)
        .precompressed_br()
        .precompressed_gzip()
        .fallback(absent.with_state(Arc::clone(&dist)));
    Router::new().fallback_service(files).layer(middleware::from_fn_with_state(dist, dress))
}

/// Answers for a file that is not there.
async fn absent(State(dist): State<Arc<Path>>, request: Request) -> Response {
    if !matches!(request.uri().path(), "/" | "/index.html") {
        return (StatusCode::NOT_FOUND, "There is no such file here.\n").into_response();
    }
    let dist = std::path::absolute(&dist).unwrap_or_else(|_| dist.to_path_buf());
    let dist = dist.display().to_string().replace('&', "&amp;").replace('<', "&lt;");
    let text = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>Baton: not built yet</title><style>body{{font:1rem/1.5 system-ui;margin:3rem auto;max-width:40rem;\
         padding:0 1rem}}</style><h1>The page is not built yet</h1><p>The signaling server runs, but it found no \
         <code>index.html</code> in <code>{dist}</code>.<p>Run <code>cargo xtask serve</code>, which builds the page \
         and starts the server, or <code>trunk build --release</code>, and reload; or start the server with \
         <code>--dist DIR</code>.</html>\n"
    );
    (StatusCode::SERVICE_UNAVAILABLE, Html(text)).into_response()
}

/// Makes byte ranges mean bytes of the file itself, and sets the headers.
async fn dress(State(dist): State<Arc<Path>>, mut request: Request, next: Next) -> Response {
    let asked = request.headers_mut();
    if asked.contains_key(header::RANGE) {
        // A range is one of the encoded bytes where a precompressed file is chosen; the page means the file's.
        asked.remove(header::ACCEPT_ENCODING);
        // ServeDir does not know If-Range. The whole file is always a right answer to it.
        if asked.remove(header::IF_RANGE).is_some() {
            asked.remove(header::RANGE);
        }
    }
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let keep = match response.status() {
        status if !status.is_success() && status != StatusCode::NOT_MODIFIED => "no-store",
        _ if is_hashed(&path) => "public, max-age=31536000, immutable",
        _ => "no-cache",
    };
    let is_html = path.ends_with('/') || path.ends_with(".html");
    let scripts = if is_html { inline_scripts(&dist).await } else { String::new() };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(keep));
    headers.insert(header::CONTENT_SECURITY_POLICY, policy(&scripts));
    headers.extend(HEADERS.into_iter().collect::<HeaderMap>());
    response
}

/// What the page may load and run. `scripts` are the hashes of its inline scripts, each with a space before it.
///
/// Styles may be inline (Leptos sets style attributes); scripts may not, but for those that trunk wrote into
/// `index.html`, which are allowed by hash. Models come from any hub, or over plain HTTP from a machine in the room.
fn policy(scripts: &str) -> HeaderValue {
    let policy = format!(
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'{scripts}; style-src 'self' 'unsafe-inline'; \
         img-src 'self' data: blob:; connect-src 'self' ws: wss: http: https: blob:; worker-src 'self' blob:; \
         object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).expect("words and base64 are valid in a header")
}

/// The CSP sources of the inline scripts of `index.html`; none if it cannot be read.
async fn inline_scripts(dist: &Path) -> String {
    let html = tokio::fs::read_to_string(dist.join("index.html")).await.unwrap_or_default();
    // A browser hashes what its parser made of the text: line ends are `\n` there.
    let html = html.replace("\r\n", "\n");
    script_texts(&html).fold(String::new(), |mut sources, script| {
        let hash = STANDARD.encode(Sha256::digest(script));
        write!(sources, " 'sha256-{hash}'").expect("a String can be written to");
        sources
    })
}

/// The texts of `<script>` elements without `src`.
fn script_texts(html: &str) -> impl Iterator<Item = &str> {
    html.split("<script").skip(1).filter_map(|rest| {
        let (tag, rest) = rest.split_once('>')?;
        let (text, _) = rest.split_once("</script")?;
        (!tag.contains(" src=")).then_some(text)
    })
}

/// Whether the name carries a hash of the content, as trunk's do: `web-0123456789abcdef_bg.wasm`.
fn is_hashed(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let is_hash = |part: &str| {
        matches!(part.len(), 15 | 16 | 64) && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    name.split(['-', '_', '.']).skip(1).any(is_hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_hash_are_kept_for_ever() {
        for hashed in
            ["/web-0123456789abcdef.js", "/a/web-0123456789abcde_bg.wasm", "/x-0123456789abcdef.css"]
        {
            assert!(is_hashed(hashed), "{hashed}");
        }
        for plain in ["/", "/index.html", "/model.safetensors", "/snippets/web-0123456789abcdef/inline0.js"] {
            assert!(!is_hashed(plain), "{plain}");
        }
    }

    #[test]
    fn inline_scripts_are_found_and_linked_ones_are_not() {
        let html = "<head><script type=\"module\" nonce=x>\nrun()\n</script><script src=\"a.js\"></script>\
                    <script>b<c</script></head><script>open";
        assert_eq!(script_texts(html).collect::<Vec<_>>(), ["\nrun()\n", "b<c"]);
    }
}
