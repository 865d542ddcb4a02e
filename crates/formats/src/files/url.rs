//! Files behind a URL, fetched by `Range` request: a Hugging Face repository, or any folder that a web server shows.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(target_arch = "wasm32")]
pub(super) use browser::describe;
#[cfg(target_arch = "wasm32")]
use browser::fetch;
#[cfg(not(target_arch = "wasm32"))]
use native::fetch;

use super::{Files, FilesError, check_name, slice};

/// A server that knows no ranges may send a file of at most this size as a whole.
const WHOLE_FILE_LIMIT: u64 = 16 << 20;

/// The files of a web folder, or of a Hugging Face repository.
///
/// Natively the requests block and the futures are ready at once; in a browser they are `fetch`es, in a page or a worker.
#[derive(Debug)]
pub struct UrlFiles {
    /// Ends with a slash.
    base: String,
    /// The last file that a server without ranges sent: it is not fetched again for every part of it.
    whole: Mutex<Option<(String, Arc<Vec<u8>>)>>,
}

impl UrlFiles {
    /// The files under `base_url`.
    ///
    /// `https://huggingface.co/org/name`, the same with `/tree/revision`, and a bare `org/name` mean that
    /// repository's files. Anything else is a folder on a web server: `https://…`, `http://…`, or in a browser `/…`
    /// and `./…` (which a worker takes relative to its script).
    pub fn new(base_url: &str) -> Result<Self, FilesError> {
        let base = folder(base_url.trim()).ok_or_else(|| FilesError::BadUrl { url: base_url.to_owned() })?;
        Ok(Self { base, whole: Mutex::new(None) })
    }

    /// The folder that names are appended to, with its closing slash.
    pub fn base(&self) -> &str {
        &self.base
    }

    async fn get(&self, name: &str, range: &Range<u64>) -> Result<Answer, FilesError> {
        let url = format!("{}{name}", self.base);
        fetch(&url, Request::Bytes(range))
            .await
            .map_err(|reason| FilesError::Io { name: name.to_owned(), reason })
    }

    /// The answer to a HEAD request, for a server whose `Content-Range` a page may not see (CORS).
    async fn head_size(&self, name: &str) -> Result<u64, FilesError> {
        let url = format!("{}{name}", self.base);
        let io = |reason| FilesError::Io { name: name.to_owned(), reason };
        let answer = fetch(&url, Request::Head).await.map_err(io)?;
        if answer.status != 200 {
            return Err(refused(name, answer.status));
        }
        answer.content_length.ok_or_else(|| io("the server does not say how large it is".to_owned()))
    }

    fn cached(&self, name: &str) -> Option<Arc<Vec<u8>>> {
        let whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        whole.as_ref().filter(|(cached, _)| cached == name).map(|(_, bytes)| Arc::clone(bytes))
    }

    /// Takes a whole file from a server without ranges.
    fn keep(&self, name: &str, body: Option<Vec<u8>>) -> Result<Arc<Vec<u8>>, FilesError> {
        let bytes =
            body.ok_or_else(|| FilesError::NoRanges { name: name.to_owned(), limit: WHOLE_FILE_LIMIT })?;
        let bytes = Arc::new(bytes);
        *self.whole.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((name.to_owned(), Arc::clone(&bytes)));
        Ok(bytes)
    }
}

impl Files for UrlFiles {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        check_name(name)?;
        if let Some(whole) = self.cached(name) {
            return Ok(whole.len() as u64);
        }
        let answer = self.get(name, &(0..1)).await?;
        match answer.status {
            206 => match answer.content_range.as_deref() {
                None => self.head_size(name).await,
                Some(text) => match ContentRange::parse(text) {
                    Some(ContentRange { size: Some(size), .. }) => Ok(size),
                    _ => Err(wrong_range(name, &(0..1), text)),
                },
            },
            200 => Ok(self.keep(name, answer.body)?.len() as u64),
            // No byte 0 to send: the file is empty.
            416 if answer.content_range.as_deref() == Some("bytes */0") => Ok(0),
            status => Err(refused(name, status)),
        }
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        check_name(name)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(whole) = self.cached(name) {
            return slice(name, &whole, &range).map(<[u8]>::to_vec);
        }
        let wanted = range.end - range.start;
        let answer = self.get(name, &range).await?;
        match answer.status {
            206 => {
                if let Some(text) = answer.content_range.as_deref() {
                    let right = ContentRange::parse(text)
                        .is_some_and(|found| (found.start, found.last) == (range.start, range.end - 1));
                    if !right {
                        return Err(wrong_range(name, &range, text));
                    }
                }
                // A body over the length was dropped at its first byte too many.
                let got = answer.body.as_ref().map_or(wanted + 1, |body| body.len() as u64);
                answer.body.filter(|_| got == wanted).ok_or_else(|| FilesError::Truncated {
                    name: name.to_owned(),
                    wanted,
                    got,
                })
            }
            200 => slice(name, &self.keep(name, answer.body)?, &range).map(<[u8]>::to_vec),
            status => Err(refused(name, status)),
        }
    }
}

/// What to ask for.
enum Request<'a> {
    Bytes(&'a Range<u64>),
    Head,
}

impl Request<'_> {
    /// The value of the `Range` header (RFC 9110, 14.2).
    fn range_header(&self) -> Option<String> {
        match self {
            Self::Bytes(range) => Some(format!("bytes={}-{}", range.start, range.end.saturating_sub(1))),
            Self::Head => None,
        }
    }

    /// How long a body may be, given the status it comes with.
    fn body_limit(&self, status: u16) -> u64 {
        match (self, status) {
            (Self::Bytes(range), 206) => range.end.saturating_sub(range.start),
            (Self::Bytes(_), 200) => WHOLE_FILE_LIMIT,
            _ => 0,
        }
    }
}

/// What a server answered.
struct Answer {
    status: u16,
    content_range: Option<String>,
    content_length: Option<u64>,
    /// `None`: it was longer than allowed, and the rest of it was not read.
    body: Option<Vec<u8>>,
}

/// `Content-Range: bytes start-last/size` (RFC 9110, 14.4), where the size may be unknown (`*`).
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    start: u64,
    last: u64,
    size: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (start, last) = range.split_once('-')?;
        let size = match size {
            "*" => None,
            size => Some(size.parse().ok()?),
        };
        Some(Self { start: start.parse().ok()?, last: last.parse().ok()?, size })
    }
}

fn wrong_range(name: &str, range: &Range<u64>, got: &str) -> FilesError {
    let wanted = format!("{}-{}", range.start, range.end.saturating_sub(1));
    FilesError::WrongRange { name: name.to_owned(), wanted, got: got.to_owned() }
}

fn refused(name: &str, status: u16) -> FilesError {
    match status {
        404 | 410 => FilesError::NotFound { name: name.to_owned() },
        status => FilesError::Http { name: name.to_owned(), status },
    }
}

/// The folder that an address means, with its closing slash; `None` if it means none.
fn folder(address: &str) -> Option<String> {
    const HUB: &str = "https://huggingface.co/";
    let plain = |text: &str| {
        !text.is_empty()
            && !text.contains("..")
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let repository = |path: &str| -> Option<String> {
        let path = path.split(['?', '#']).next()?.trim_end_matches('/');
        match path.split('/').collect::<Vec<_>>().as_slice() {
            [org, name] if plain(org) && plain(name) => Some(format!("{HUB}{org}/{name}/resolve/main/")),
            [org, name, "tree" | "resolve", revision]
                if [org, name, revision].iter().all(|part| plain(part)) =>
            {
                Some(format!("{HUB}{org}/{name}/resolve/{revision}/"))
            }
            _ => None,
        }
    };
    let hub = [
        "https://huggingface.co/",
        "https://www.huggingface.co/",
        "http://huggingface.co/",
        "huggingface.co/",
    ];
    if let Some(path) = hub.iter().find_map(|prefix| address.strip_prefix(prefix)) {
        return repository(path);
    }
    let relative = cfg!(target_arch = "wasm32") && (address.starts_with("./") || address.starts_with('/'));
    let web = ["https://", "http://"]
        .iter()
        .any(|scheme| address.strip_prefix(scheme).is_some_and(|rest| !rest.trim_matches('/').is_empty()));
    if relative || web {
        // Names are appended to it, which a query or a fragment would swallow.
        let odd = |c: char| c == '?' || c == '#' || c.is_control() || c.is_whitespace();
        return (!address.contains(odd)).then(|| format!("{}/", address.trim_end_matches('/')));
    }
    repository(address)
}

#[cfg(not(target_arch = "wasm32"))]
mod native {
    //! Requests through ureq.

    use std::io::Read;
    use std::sync::OnceLock;
    use std::time::Duration;

    use super::{Answer, Request};

    pub(super) async fn fetch(url: &str, request: Request<'_>) -> Result<Answer, String> {
        let response = match request.range_header() {
            Some(range) => agent().get(url).header("Range", range).call(),
            None => agent().head(url).call(),
        };
        let response = response.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let content_range = header("content-range").map(str::to_owned);
        let content_length = header("content-length").and_then(|text| text.parse().ok());
        let limit = request.body_limit(status);
        let body = if limit == 0 || content_length.is_some_and(|length| length > limit) {
            None
        } else {
            let mut bytes = Vec::new();
            let mut reader = response.into_body().into_reader().take(limit.saturating_add(1));
            reader.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
            (bytes.len() as u64 <= limit).then_some(bytes)
        };
        Ok(Answer { status, content_range, content_length, body })
    }

    /// One agent keeps its connections open between the many ranges of one file.
    fn agent() -> &'static ureq::Agent {
        static AGENT: OnceLock<ureq::Agent> = OnceLock::new();
        AGENT.get_or_init(|| {
            ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_connect(Some(Duration::from_secs(30)))
                .timeout_recv_response(Some(Duration::from_secs(60)))
                .timeout_recv_body(Some(Duration::from_secs(600)))
                .user_agent(concat!("baton/", env!("CARGO_PKG_VERSION")))
                .build()
                .into()
        })
    }
}

#[cfg(target_arch = "wasm32")]
mod browser {
    //! Requests through the browser's `fetch`, in a page or a worker.

    use js_sys::{Reflect, Uint8Array};
    use wasm_bindgen::{JsCast, JsValue};
    use wasm_bindgen_futures::JsFuture;
    use web_sys::{Headers, ReadableStreamDefaultReader, RequestInit, Response, Window, WorkerGlobalScope};

    use super::{Answer, Request};

    pub(super) async fn fetch(url: &str, request: Request<'_>) -> Result<Answer, String> {
        let response = send(url, &request).await.map_err(|error| describe(&error))?;
        let status = response.status();
        let header = |name| response.headers().get(name).ok().flatten();
        let content_range = header("content-range");
        let content_length = header("content-length").and_then(|text| text.parse().ok());
        let limit = request.body_limit(status);
        let body = if limit == 0 || content_length.is_some_and(|length: u64| length > limit) {
            cancel(&response);
            None
        } else {
            read(&response, limit).await.map_err(|error| describe(&error))?
        };
        Ok(Answer { status, content_range, content_length, body })
    }

    /// What a JavaScript error says.
    pub(in crate::files) fn describe(error: &JsValue) -> String {
        match error.dyn_ref::<js_sys::Error>() {
            Some(error) => String::from(error.message()),
            None => format!("{error:?}"),
        }
    }

    async fn send(url: &str, request: &Request<'_>) -> Result<Response, JsValue> {
        let init = RequestInit::new();
        match request.range_header() {
            Some(range) => {
                let headers = Headers::new()?;
                headers.set("Range", &range)?;
                init.set_headers(&headers);
                // Chromium keeps a part, and asks for the next one with If-Range: to that a server may answer with the
                // whole file. Set by name, as web-sys has it only with a feature of its own.
                Reflect::set(&init, &JsValue::from_str("cache"), &JsValue::from_str("no-store"))?;
            }
            None => init.set_method("HEAD"),
        }
        let request = web_sys::Request::new_with_str_and_init(url, &init)?;
        let global = js_sys::global();
        let promise = match global.dyn_into::<Window>() {
            Ok(window) => window.fetch_with_request(&request),
            Err(global) => match global.dyn_into::<WorkerGlobalScope>() {
                Ok(worker) => worker.fetch_with_request(&request),
                Err(_) => {
                    return Err(js_sys::Error::new("there is no fetch outside of a page or a worker").into());
                }
            },
        };
        JsFuture::from(promise).await?.dyn_into()
    }

    /// The body, chunk by chunk; `None` as soon as it is longer than `limit`.
    async fn read(response: &Response, limit: u64) -> Result<Option<Vec<u8>>, JsValue> {
        let mut bytes = Vec::new();
        let Some(stream) = response.body() else { return Ok(Some(bytes)) };
        let reader: ReadableStreamDefaultReader = stream.get_reader().dyn_into()?;
        loop {
            let result = JsFuture::from(reader.read()).await?;
            if Reflect::get(&result, &JsValue::from_str("done"))?.is_truthy() {
                return Ok(Some(bytes));
            }
            let chunk: Uint8Array = Reflect::get(&result, &JsValue::from_str("value"))?.dyn_into()?;
            if bytes.len() as u64 + u64::from(chunk.length()) > limit {
                // Whether the server hears of it makes no difference here.
                drop(reader.cancel());
                return Ok(None);
            }
            let start = bytes.len();
            bytes.resize(start + chunk.length() as usize, 0);
            if let Some(rest) = bytes.get_mut(start..) {
                chunk.copy_to(rest);
            }
        }
    }

    /// Tells the browser that the body is not wanted.
    fn cancel(response: &Response) {
        if let Some(stream) = response.body() {
            drop(stream.cancel());
        }
    }
}

#[cfg(test)]
#[cfg(not(target_arch = "wasm32"))]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use futures::executor::block_on;

    use super::*;

    /// A path and a range to a status with headers, and a body.
    type Server = fn(&str, Option<(usize, usize)>) -> (String, Vec<u8>);

    /// Serves `answer` on a port of its own until the test process ends; gives the address.
    fn serve(answer: Server) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let lines: Vec<String> =
                    lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                let path = lines[0].split(' ').nth(1).unwrap().to_owned();
                let range = lines.iter().find_map(|line| {
                    let (name, value) = line.split_once(": ")?;
                    let (start, last) = value.strip_prefix("bytes=")?.split_once('-')?;
                    name.eq_ignore_ascii_case("range")
                        .then(|| (start.parse().unwrap(), last.parse().unwrap()))
                });
                let (head, body) = answer(&path, range);
                let _ = write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(&body);
            }
        });
        format!("http://{address}/model")
    }

    fn content() -> Vec<u8> {
        (0..=255).cycle().take(1000).collect()
    }

    #[test]
    fn a_server_with_ranges_is_read_by_range() {
        let url = serve(|path, range| match (path, range) {
            ("/model/a.bin", Some((start, last))) => {
                let body = content()[start..=last].to_vec();
                let length = body.len();
                (
                    format!(
                        "206 Partial Content\r\nContent-Range: bytes {start}-{last}/1000\r\nContent-Length: {length}"
                    ),
                    body,
                )
            }
            // As Hugging Face does, to where the bytes are.
            ("/model/moved.bin", _) => {
                ("302 Found\r\nLocation: /model/a.bin\r\nContent-Length: 0".to_owned(), vec![])
            }
            ("/model/empty", _) => {
                ("416 Range Not Satisfiable\r\nContent-Range: bytes */0".to_owned(), vec![])
            }
            ("/model/secret", _) => ("401 Unauthorized\r\nContent-Length: 0".to_owned(), vec![]),
            _ => ("404 Not Found\r\nContent-Length: 0".to_owned(), vec![]),
        });
        let files = UrlFiles::new(&url).unwrap();
        assert_eq!(block_on(files.size("a.bin")), Ok(1000));
        assert_eq!(block_on(files.read("a.bin", 300..417)).unwrap(), content()[300..417]);
        assert_eq!(block_on(files.read("moved.bin", 300..417)).unwrap(), content()[300..417]);
        assert_eq!(block_on(files.size("empty")), Ok(0));
        assert_eq!(
            block_on(files.size("secret")),
            Err(FilesError::Http { name: "secret".to_owned(), status: 401 })
        );
        assert_eq!(block_on(files.size("none")), Err(FilesError::NotFound { name: "none".to_owned() }));
    }

    #[test]
    fn a_small_file_from_a_server_without_ranges_is_sliced() {
        let url = serve(|_, _| ("200 OK\r\nContent-Length: 1000".to_owned(), content()));
        let files = UrlFiles::new(&url).unwrap();
        assert_eq!(block_on(files.size("a.bin")), Ok(1000));
        assert_eq!(block_on(files.read("a.bin", 10..20)).unwrap(), content()[10..20]);
        assert!(matches!(block_on(files.read("a.bin", 990..1001)), Err(FilesError::OutOfRange { .. })));
    }

    #[test]
    fn a_large_file_from_a_server_without_ranges_is_refused_unread() {
        // The body never comes: it is refused by its announced length.
        let url = serve(|_, _| (format!("200 OK\r\nContent-Length: {}", WHOLE_FILE_LIMIT + 1), vec![]));
        let error = block_on(UrlFiles::new(&url).unwrap().size("a.bin")).unwrap_err();
        assert_eq!(error, FilesError::NoRanges { name: "a.bin".to_owned(), limit: WHOLE_FILE_LIMIT });
    }

    #[test]
    fn an_endless_body_of_no_announced_length_is_cut_off() {
        let url =
            serve(|_, _| ("200 OK".to_owned(), vec![0; usize::try_from(WHOLE_FILE_LIMIT).unwrap() + 4096]));
        let error = block_on(UrlFiles::new(&url).unwrap().read("a.bin", 0..1)).unwrap_err();
        assert_eq!(error, FilesError::NoRanges { name: "a.bin".to_owned(), limit: WHOLE_FILE_LIMIT });
    }

    #[test]
    fn an_answer_of_another_length_or_range_is_an_error() {
        let url = serve(|path, _| match path {
            "/model/short" => ("206 Partial Content\r\nContent-Range: bytes 0-9/100".to_owned(), vec![7; 4]),
            "/model/long" => ("206 Partial Content\r\nContent-Range: bytes 0-9/100".to_owned(), vec![7; 11]),
            _ => ("206 Partial Content\r\nContent-Range: bytes 5-14/100".to_owned(), vec![7; 10]),
        });
        let files = UrlFiles::new(&url).unwrap();
        let truncated = |name: &str, got| FilesError::Truncated { name: name.to_owned(), wanted: 10, got };
        assert_eq!(block_on(files.read("short", 0..10)), Err(truncated("short", 4)));
        assert_eq!(block_on(files.read("long", 0..10)), Err(truncated("long", 11)));
        assert!(matches!(block_on(files.read("moved", 0..10)), Err(FilesError::WrongRange { .. })));
    }

    #[test]
    fn an_address_becomes_the_folder_of_its_files() {
        let hub = "https://huggingface.co/org/na-me_1.5/resolve/main/";
        for (address, base) in [
            ("https://huggingface.co/org/na-me_1.5", hub),
            ("https://huggingface.co/org/na-me_1.5/", hub),
            ("https://huggingface.co/org/na-me_1.5/tree/main", hub),
            ("https://huggingface.co/org/na-me_1.5?library=transformers", hub),
            ("https://huggingface.co/org/na-me_1.5/resolve/main/", hub),
            ("huggingface.co/org/na-me_1.5", hub),
            (" org/na-me_1.5 ", hub),
            ("https://huggingface.co/org/name/tree/v2", "https://huggingface.co/org/name/resolve/v2/"),
            ("http://192.168.1.7:8000/models/mine", "http://192.168.1.7:8000/models/mine/"),
            ("https://example.org/", "https://example.org/"),
        ] {
            assert_eq!(UrlFiles::new(address).unwrap().base(), base, "{address}");
        }
        for address in
            ["", "name", "a/b/c", "../x", "a b/c", "ftp://x/y", "https://", "https://x/y?z=1", "javascript:1"]
        {
            let error = UrlFiles::new(address).unwrap_err();
            assert_eq!(error, FilesError::BadUrl { url: address.to_owned() });
        }
    }

    #[test]
    fn a_content_range_is_read_or_refused() {
        let parse = ContentRange::parse;
        assert_eq!(parse("bytes 0-0/1000"), Some(ContentRange { start: 0, last: 0, size: Some(1000) }));
        assert_eq!(parse("bytes 5-9/*"), Some(ContentRange { start: 5, last: 9, size: None }));
        for bad in ["", "bytes", "bytes 0-0", "bytes */7", "bytes a-b/c", "bytes 0-0/-1", "items 0-1/2"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
