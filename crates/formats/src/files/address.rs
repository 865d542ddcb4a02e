//! What an address that a person gives means: a repository on a model hub, or a web folder.

/// Where a bare `org/name` is looked for.
const HUB: &str = "https://huggingface.co/";

/// An address that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A folder, with its closing slash, that names are appended to.
    Folder(String),
    /// A repository on a server that speaks the Hugging Face hub's URL layout.
    Repository {
        /// The server, with its closing slash.
        hub: String,
        /// `org/name`.
        repository: String,
        /// A branch, a tag, or a commit.
        revision: String,
    },
}

impl Address {
    /// `None` if the text is no address.
    ///
    /// A repository is `org/name`, an address on huggingface.co, and an address on any server that says so by its path:
    /// `http://host/org/name/resolve/revision`, also with `tree` or `blob` in place of `resolve`,
    /// also with a file behind it.
    /// Every other web address is a folder.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let on_hub = [
            "https://huggingface.co/",
            "https://www.huggingface.co/",
            "http://huggingface.co/",
            "huggingface.co/",
        ];
        if let Some(path) = on_hub.iter().find_map(|prefix| text.strip_prefix(prefix)) {
            return repository(HUB, path);
        }
        if let Some((scheme, rest)) =
            ["https://", "http://"].iter().find_map(|scheme| Some((scheme, text.strip_prefix(scheme)?)))
        {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let says_so = matches!(path.split('/').nth(2), Some("tree" | "resolve" | "blob"));
            if says_so && let Some(found) = repository(&format!("{scheme}{host}/"), path) {
                return (!host.is_empty()).then_some(found);
            }
            return if rest.trim_matches('/').is_empty() { None } else { folder(text) };
        }
        if cfg!(target_arch = "wasm32") && (text.starts_with("./") || text.starts_with('/')) {
            return folder(text);
        }
        repository(HUB, text)
    }

    /// The folder of the files: at `commit` if it is given, else at the revision that the address names.
    pub(super) fn base(&self, commit: Option<&str>) -> String {
        match self {
            Self::Folder(base) => base.clone(),
            Self::Repository { hub, repository, revision } => {
                format!("{hub}{repository}/resolve/{}/", commit.unwrap_or(revision))
            }
        }
    }
}

/// Whether a text is a commit's hash (SHA-1 or SHA-256): it means the same files for ever.
pub(super) fn is_commit(text: &str) -> bool {
    [40, 64].contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn folder(address: &str) -> Option<Address> {
    // Names are appended to it, which a query or a fragment would swallow.
    let odd = |c: char| c == '?' || c == '#' || c.is_control() || c.is_whitespace();
    (!address.contains(odd)).then(|| Address::Folder(format!("{}/", address.trim_end_matches('/'))))
}

fn repository(hub: &str, path: &str) -> Option<Address> {
    let plain = |text: &&str| {
        !text.is_empty()
            && *text != "."
            && !text.contains("..")
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let path = path.split(['?', '#']).next()?.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let (org, name, revision) = match parts.as_slice() {
        [org, name] => (org, name, &"main"),
        [org, name, "tree" | "resolve" | "blob", revision] | [org, name, "resolve" | "blob", revision, _] => {
            (org, name, revision)
        }
        _ => return None,
    };
    let good = parts.iter().all(plain) && !hub.contains(|c: char| c.is_control() || c.is_whitespace());
    good.then(|| Address::Repository {
        hub: hub.to_owned(),
        repository: format!("{org}/{name}"),
        revision: (*revision).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_the_folder_of_its_files() {
        let hub = "https://huggingface.co/org/na-me_1.5/resolve/main/";
        for (address, base) in [
            ("https://huggingface.co/org/na-me_1.5", hub),
            ("https://huggingface.co/org/na-me_1.5/", hub),
            ("https://huggingface.co/org/na-me_1.5/tree/main", hub),
            ("https://huggingface.co/org/na-me_1.5?library=transformers", hub),
            ("https://huggingface.co/org/na-me_1.5/resolve/main/", hub),
            ("https://huggingface.co/org/na-me_1.5/resolve/main/config.json", hub),
            ("huggingface.co/org/na-me_1.5", hub),
            (" org/na-me_1.5 ", hub),
            ("https://huggingface.co/org/name/tree/v2", "https://huggingface.co/org/name/resolve/v2/"),
            ("http://127.0.0.1:8000/org/name/resolve/main", "http://127.0.0.1:8000/org/name/resolve/main/"),
            ("https://mirror.test/org/name/tree/v2", "https://mirror.test/org/name/resolve/v2/"),
            ("http://192.168.1.7:8000/models/mine", "http://192.168.1.7:8000/models/mine/"),
            ("https://example.org/", "https://example.org/"),
        ] {
            assert_eq!(Address::parse(address).unwrap().base(None), base, "{address}");
        }
        for address in [
            "",
            "name",
            "a/b/c",
            "../x",
            "a b/c",
            "ftp://x/y",
            "https://",
            "https://x/y?z=1",
            "javascript:1",
            "./x",
            "huggingface.co/a/b/tree/../c",
        ] {
            assert_eq!(Address::parse(address), None, "{address}");
        }
    }

    #[test]
    fn a_commit_takes_the_place_of_the_branch() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert!(is_commit(commit) && !is_commit("main") && !is_commit(&commit.to_uppercase()));
        let address = Address::parse("https://mirror.test/org/name/tree/main").unwrap();
        let base = address.base(Some(commit));
        assert_eq!(base, format!("https://mirror.test/org/name/resolve/{commit}/"));
        let again = Address::parse(&base).unwrap();
        assert!(matches!(again, Address::Repository { revision, .. } if revision == commit));
    }
}
