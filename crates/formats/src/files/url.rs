//! Files behind a URL, fetched by `Range` request: a Hugging Face repository, or any folder that a web server shows.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Deserialize;

use super::address::{Address, is_commit};
use super::cache::{Hash, sha256};
use super::http::{Answer, Ask, ContentRange, End, WHOLE_FILE_LIMIT, fetch, sleep};
use super::patience::{Failures, Patience, Trouble};
use super::{Files, FilesError, check_name, slice};

/// What the hub says of a repository, with a line for every file of it.
const ABOUT_LIMIT: u64 = 4 << 20;

/// A redirect's target that refuses is asked for anew this often: its signature may have expired on the way.
const NEW_SIGNATURES: u32 = 2;

/// Files whose answers are remembered; a model has a few dozen.
const MOST_KNOWN: usize = 1024;

/// The files of a web folder, or of a Hugging Face repository at one commit.
///
/// What fails and may pass (a lost connection, 429, 5xx) is waited out as [`Patience`] says, and a cut body goes on from
/// the byte that it had reached. Natively the requests block and the futures are ready at once; in a browser they are
/// `fetch`es, in a page or a worker.
#[derive(Debug)]
pub struct UrlFiles {
    address: Address,
    /// The folder at the revision that the address names.
    base: String,
    /// The file that the address names, if that is one of weights.
    gguf: Option<String>,
    patience: Patience,
    /// The commit that the revision was when it was first asked for; within it `None` where there is no such thing.
    commit: OnceLock<Option<String>>,
    /// Whether the server has answered yet.
    met: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last file that a server without ranges sent: it is not fetched again for every part of it.
    whole: Option<(String, Arc<Vec<u8>>)>,
    known: BTreeMap<String, Known>,
}

/// What earlier answers said of a file.
#[derive(Clone, Debug, Default)]
struct Known {
    size: Option<u64>,
    version: Option<String>,
    /// Where the address redirects to, for as long as that answers: a hub counts how often it is asked.
    target: Option<String>,
    /// The target is to be reached through the address only.
    indirect: bool,
}

impl UrlFiles {
    /// The files under `address`.
    ///
    /// `https://huggingface.co/org/name`, the same with `/tree/revision`, and a bare `org/name` mean that repository's
    /// files; so does `http://host/org/name/resolve/revision` (or `tree`) on any server that speaks the hub's URL layout.
    /// Anything else is a folder on a web server: `https://…`, `http://…`, or in a browser `/…` and `./…` (which a
    /// worker takes relative to its script). An address of a `.gguf` file means its folder, with that file as weights.
    pub fn new(address: &str) -> Result<Self, FilesError> {
        Self::with_patience(address, Patience::default())
    }

    /// The same with other waits.
    pub fn with_patience(address: &str, patience: Patience) -> Result<Self, FilesError> {
        let of_file = address.trim().rsplit_once('/').and_then(|(folder, file)| {
            let good = file.ends_with(".gguf") && check_name(file).is_ok();
            good.then(|| Address::parse(folder).map(|folder| (folder, Some(file.to_owned()))))?
        });
        let (parsed, gguf) = of_file
            .or_else(|| Address::parse(address).map(|folder| (folder, None)))
            .ok_or_else(|| FilesError::BadUrl { url: address.to_owned() })?;
        Ok(Self {
            base: parsed.base(None),
            address: parsed,
            gguf,
            patience,
            commit: OnceLock::new(),
            met: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    /// The folder that the address means, with its closing slash, at the revision that it names.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The commit that all files are read at, once [`pin`](Self::pin) or the first read has found it; `None` before that
    /// and for a web folder, which has none.
    pub fn pinned(&self) -> Option<&str> {
        self.commit.get()?.as_deref()
    }

    /// The folder at the pinned commit: an address by which someone else reads the very same files.
    pub fn pinned_base(&self) -> String {
        self.address.base(self.pinned())
    }

    /// Finds the commit that the address' revision is now, once; all later requests name that commit, so that a branch
    /// may move on during a run.
    ///
    /// `None`: a web folder, or a server that does not say. There a file that changes is told by its `ETag`,
    /// `Last-Modified` and size.
    pub async fn pin(&self) -> Result<Option<&str>, FilesError> {
        let commit = match self.commit.get() {
            Some(commit) => commit,
            None => {
                let found = self.find_commit().await?;
                self.commit.get_or_init(|| found)
            }
        };
        Ok(commit.as_deref())
    }

    /// A key that means these files, byte for byte, for ever; `None` where there is no commit to say so.
    pub async fn identity(&self) -> Result<Option<Hash>, FilesError> {
        let pinned = self.pin().await?.is_some();
        Ok(pinned.then(|| sha256(self.pinned_base().as_bytes())))
    }

    async fn find_commit(&self) -> Result<Option<String>, FilesError> {
        let Address::Repository { hub, repository, revision } = &self.address else { return Ok(None) };
        if is_commit(revision) {
            return Ok(Some(revision.clone()));
        }
        let mut failures = Failures::new(&self.patience);
        // The file need not be there: the header comes with a 404 too.
        let url = format!("{}config.json", self.base);
        let answer = self.ask(repository, &url, &Ask::Unfollowed, &mut failures).await?;
        if let Some(commit) = answer.commit.filter(|commit| is_commit(commit)) {
            return Ok(Some(commit));
        }
        // A browser shows the headers of the last redirect's target only.
        #[derive(Deserialize)]
        struct About {
            sha: String,
        }
        let url = format!("{hub}api/models/{repository}/revision/{revision}");
        let answer = self.ask(repository, &url, &Ask::Document(ABOUT_LIMIT), &mut failures).await?;
        let about: Option<About> = match (answer.status, answer.end) {
            (200, End::Whole) => serde_json::from_slice(&answer.body).ok(),
            _ => None,
        };
        Ok(about.map(|about| about.sha).filter(|sha| is_commit(sha)))
    }

    /// An answer that is not "later", from wherever the file is.
    async fn get(&self, name: &str, ask: &Ask, failures: &mut Failures<'_>) -> Result<Answer, FilesError> {
        let url = format!("{}{name}", self.address.base(self.pin().await?));
        let mut refusals = 0;
        loop {
            // A signature is for GET alone.
            let known = match ask {
                Ask::Head => None,
                _ => self.state().known.get(name).and_then(|known| known.target.clone()),
            };
            let (answer, redirected) = match &known {
                Some(target) => match fetch(target, ask, self.patience.answer).await {
                    Ok(answer) if !matches!(answer.status, 400..) => (answer, true),
                    // It may have expired, or moved: the address itself knows. One that gives no answer may not be open to
                    // a page that comes straight to it, so it is not tried again.
                    other => {
                        self.know(name, |known| {
                            known.target = None;
                            known.indirect |= other.is_err();
                        });
                        continue;
                    }
                },
                None => {
                    let answer = self.ask(name, &url, ask, failures).await?;
                    let redirected = answer.target.is_some();
                    (answer, redirected)
                }
            };
            if redirected && matches!(answer.status, 401 | 403 | 410) && refusals < NEW_SIGNATURES {
                refusals += 1;
                continue;
            }
            if matches!(answer.status, 200 | 206) && !matches!(ask, Ask::Head) {
                self.check_same(name, &answer)?;
                let target = answer.target.clone().or(known);
                self.know(name, |known| known.target = target.filter(|_| !known.indirect));
            }
            return Ok(answer);
        }
    }

    /// An answer that is not "later".
    async fn ask(
        &self,
        name: &str,
        url: &str,
        ask: &Ask,
        failures: &mut Failures<'_>,
    ) -> Result<Answer, FilesError> {
        loop {
            let (trouble, asked) = match fetch(url, ask, self.patience.answer).await {
                Ok(answer) => {
                    self.met.store(true, Ordering::Relaxed);
                    match answer.status {
                        // Request Timeout, Too Early, Too Many Requests; and what a server says that is not well.
                        408 | 425 | 429 | 500 | 502..=504 => {
                            (Trouble::Busy { status: answer.status }, answer.retry_after)
                        }
                        _ => return Ok(answer),
                    }
                }
                Err(reason) => (Trouble::Unreachable { reason }, None),
            };
            self.wait(name, failures, trouble, asked.as_deref()).await?;
        }
    }

    async fn wait(
        &self,
        name: &str,
        failures: &mut Failures<'_>,
        trouble: Trouble,
        asked: Option<&str>,
    ) -> Result<(), FilesError> {
        let met = self.met.load(Ordering::Relaxed);
        sleep(failures.wait(name, trouble, met, asked)?).await;
        Ok(())
    }

    /// Refuses an answer from another version of the file than the answers before it.
    fn check_same(&self, name: &str, answer: &Answer) -> Result<(), FilesError> {
        let range = answer.content_range.as_deref().and_then(ContentRange::parse);
        let size = match answer.status {
            200 if answer.end == End::Whole => Some(answer.body.len() as u64),
            _ => range.and_then(|range| range.size),
        };
        // At a commit nothing changes; there the two ends of a content network may have an ETag each.
        let version = answer.version.clone().filter(|_| self.pinned().is_none());
        let mut changed = None;
        self.know(name, |known| {
            let mut compare = |was: &Option<String>, now: &Option<String>| {
                if let (Some(was), Some(now)) = (was, now)
                    && was != now
                {
                    changed.get_or_insert_with(|| (was.clone(), now.clone()));
                }
            };
            let bytes = |size: Option<u64>| size.map(|size| format!("{size} bytes"));
            compare(&bytes(known.size), &bytes(size));
            compare(&known.version, &version);
            known.size = known.size.or(size);
            known.version = known.version.take().or(version);
        });
        match changed {
            Some((was, now)) => Err(FilesError::Changed { name: name.to_owned(), was, now }),
            None => Ok(()),
        }
    }

    /// The answer to a HEAD request, for a server whose `Content-Range` a page may not see (CORS).
    async fn head_size(&self, name: &str, failures: &mut Failures<'_>) -> Result<u64, FilesError> {
        let answer = self.get(name, &Ask::Head, failures).await?;
        if answer.status != 200 {
            return Err(refused(name, answer.status));
        }
        answer.content_length.ok_or_else(|| FilesError::Io {
            name: name.to_owned(),
            reason: "the server does not say how large it is".to_owned(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn know(&self, name: &str, learn: impl FnOnce(&mut Known)) {
        let mut state = self.state();
        if state.known.len() >= MOST_KNOWN && !state.known.contains_key(name) {
            state.known.clear();
        }
        learn(state.known.entry(name.to_owned()).or_default());
    }

    fn cached(&self, name: &str) -> Option<Arc<Vec<u8>>> {
        self.state().whole.as_ref().filter(|(cached, _)| cached == name).map(|(_, bytes)| Arc::clone(bytes))
    }

    /// Takes a whole file from a server without ranges; `None` if it did not come whole, and is to be asked for again.
    async fn keep(
        &self,
        name: &str,
        answer: Answer,
        failures: &mut Failures<'_>,
    ) -> Result<Option<Arc<Vec<u8>>>, FilesError> {
        let got = answer.body.len() as u64;
        let wanted = answer.content_length.unwrap_or(got);
        match answer.end {
            End::Whole => {
                let bytes = Arc::new(answer.body);
                self.state().whole = Some((name.to_owned(), Arc::clone(&bytes)));
                Ok(Some(bytes))
            }
            End::Excess => Err(FilesError::NoRanges { name: name.to_owned(), limit: WHOLE_FILE_LIMIT }),
            End::Cut(reason) => {
                self.wait(name, failures, Trouble::Cut { got, wanted, reason }, None).await?;
                Ok(None)
            }
        }
    }
}

impl Files for UrlFiles {
    async fn size(&self, name: &str) -> Result<u64, FilesError> {
        check_name(name)?;
        if let Some(size) = self.state().known.get(name).and_then(|known| known.size) {
            return Ok(size);
        }
        let mut failures = Failures::new(&self.patience);
        loop {
            let answer = self.get(name, &Ask::Bytes(0..1), &mut failures).await?;
            let size = match answer.status {
                206 => match answer.content_range.as_deref() {
                    None => self.head_size(name, &mut failures).await?,
                    Some(text) => match ContentRange::parse(text) {
                        Some(ContentRange { size: Some(size), .. }) => size,
                        _ => return Err(wrong_range(name, &(0..1), text)),
                    },
                },
                200 => match self.keep(name, answer, &mut failures).await? {
                    Some(whole) => whole.len() as u64,
                    None => continue,
                },
                // No byte 0 to send: the file is empty.
                416 if answer.content_range.as_deref().and_then(ContentRange::unsatisfied) == Some(0) => 0,
                status => return Err(refused(name, status)),
            };
            self.know(name, |known| known.size = Some(size));
            return Ok(size);
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
        let mut failures = Failures::new(&self.patience);
        let mut bytes = Vec::new();
        loop {
            let rest = range.start + bytes.len() as u64..range.end;
            let answer = self.get(name, &Ask::Bytes(rest.clone()), &mut failures).await?;
            let outside = |size| FilesError::OutOfRange {
                name: name.to_owned(),
                start: range.start,
                end: range.end,
                size,
            };
            match answer.status {
                206 => {
                    if let Some(text) = answer.content_range.as_deref() {
                        let found =
                            ContentRange::parse(text).ok_or_else(|| wrong_range(name, &rest, text))?;
                        if let Some(size) = found.size.filter(|size| *size < range.end) {
                            return Err(outside(size));
                        }
                        // A shorter part from where it was asked for is allowed (RFC 9110, 15.3.7).
                        if found.start != rest.start || found.last >= rest.end {
                            return Err(wrong_range(name, &rest, text));
                        }
                    }
                }
                200 => match self.keep(name, answer, &mut failures).await? {
                    Some(whole) => return slice(name, &whole, &range).map(<[u8]>::to_vec),
                    None => continue,
                },
                416 => {
                    let size = answer.content_range.as_deref().and_then(ContentRange::unsatisfied);
                    return Err(size.map_or_else(|| refused(name, 416), outside));
                }
                status => return Err(refused(name, status)),
            }
            if answer.end == End::Excess {
                return Err(FilesError::Excess { name: name.to_owned(), wanted: rest.end - rest.start });
            }
            failures.progress(answer.body.len() as u64);
            if bytes.is_empty() {
                bytes = answer.body;
            } else {
                bytes.extend_from_slice(&answer.body);
            }
            let got = bytes.len() as u64;
            if got == wanted {
                return Ok(bytes);
            }
            let reason = match answer.end {
                End::Cut(reason) => reason,
                _ => "the answer ended there".to_owned(),
            };
            self.wait(name, &mut failures, Trouble::Cut { got, wanted, reason }, None).await?;
        }
    }

    fn weights_file(&self) -> Option<String> {
        self.gguf.clone()
    }
}

fn wrong_range(name: &str, range: &Range<u64>, got: &str) -> FilesError {
    let wanted = format!("{}-{}", range.start, range.end.saturating_sub(1));
    FilesError::WrongRange { name: name.to_owned(), wanted, got: got.chars().take(200).collect() }
}

fn refused(name: &str, status: u16) -> FilesError {
    match status {
        404 | 410 => FilesError::NotFound { name: name.to_owned() },
        status => FilesError::Http { name: name.to_owned(), status },
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
            "/model/long" => ("206 Partial Content\r\nContent-Range: bytes 0-9/100".to_owned(), vec![7; 11]),
            _ => ("206 Partial Content\r\nContent-Range: bytes 5-14/100".to_owned(), vec![7; 10]),
        });
        let files = UrlFiles::new(&url).unwrap();
        let long = FilesError::Excess { name: "long".to_owned(), wanted: 10 };
        assert_eq!(block_on(files.read("long", 0..10)), Err(long));
        assert!(matches!(block_on(files.read("moved", 0..10)), Err(FilesError::WrongRange { .. })));
    }

    #[test]
    fn a_target_that_is_not_open_to_all_is_reached_through_its_address() {
        static ASKED: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let url = serve(|path, range| {
            let mut asked = ASKED.lock().unwrap();
            let straight = path == "/bytes" && asked.last().is_some_and(|last| last == "/bytes");
            asked.push(path.to_owned());
            match (path, range) {
                _ if straight => ("nonsense".to_owned(), vec![]),
                ("/bytes", Some((start, last))) => (
                    format!("206 Partial Content\r\nContent-Range: bytes {start}-{last}/1000"),
                    content()[start..=last].to_vec(),
                ),
                _ => ("302 Found\r\nLocation: /bytes\r\nContent-Length: 0".to_owned(), vec![]),
            }
        });
        let files = UrlFiles::new(&url).unwrap();
        for at in [0, 10, 20, 30] {
            let range = at as usize..at as usize + 10;
            assert_eq!(block_on(files.read("a.bin", at..at + 10)).unwrap(), content()[range]);
        }
        let [through, bytes] = ["/model/a.bin", "/bytes"];
        let tried_once = [through, bytes, bytes, through, bytes, through, bytes, through, bytes];
        assert_eq!(*ASKED.lock().unwrap(), tried_once);
    }

    #[test]
    fn the_address_of_a_gguf_file_is_that_of_its_folder() {
        for (address, base, file) in [
            (
                "https://huggingface.co/org/name/blob/main/tiny.gguf",
                "https://huggingface.co/org/name/resolve/main/",
                Some("tiny.gguf"),
            ),
            ("http://127.0.0.1/models/a.gguf", "http://127.0.0.1/models/", Some("a.gguf")),
            ("org/name.gguf", "https://huggingface.co/org/name.gguf/resolve/main/", None),
        ] {
            let files = UrlFiles::new(address).unwrap();
            assert_eq!((files.base(), files.weights_file().as_deref()), (base, file));
        }
    }
}
