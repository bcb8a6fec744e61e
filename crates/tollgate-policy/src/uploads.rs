//! Limits of uploads: the size and length that a call states, against the policy's limits.

use std::{cmp::Reverse, fmt};

use crate::{
    format::{Length, uploads as format},
    policy::{Mistake, Place, Policy},
};

/// The upload of a call, as the call describes it.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    /// `image`, `audio`, `video`, or a media type.
    pub media_type: &'a str,
    /// Its size.
    pub bytes: u64,
    /// Its playing time, 0 if it has none.
    pub duration_seconds: u64,
}

/// The limits of one policy, the most specific first.
#[derive(Debug, Default)]
pub struct Uploads(Vec<UploadLimit>);

#[derive(Debug)]
struct UploadLimit {
    media: Box<str>,
    resource: Option<Box<str>>,
    size: Option<Maximum>,
    length: Option<Maximum>,
}

/// A maximum, and its text in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Maximum {
    value: u64,
    text: Box<str>,
}

/// An upload above a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadTooLarge {
    kind: &'static str,
    measure: Measure,
    has: u64,
    limit: Maximum,
    resource: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Size,
    Length,
}

/// The description of an upload is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upload.media_type: must be `image`, `audio`, `video`, or a media type such as `audio/wav`")]
pub struct InvalidUpload;

impl Uploads {
    /// The limits of a policy file.
    pub(crate) fn of(section: &format::Uploads, policy: &Policy) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut limits: Vec<UploadLimit> = Vec::with_capacity(section.limits.len());
        for (at, limit) in section.limits.iter().enumerate() {
            let place = Place::root().at("uploads").at("limits").at(at);
            let resource = limit.resource.as_ref().map(|name| name.0.as_str());
            if let Some(name) = resource
                && !policy.resources().iter().any(|known| matches(name, &known.name))
            {
                let message = format!("{name:?} matches none of `resources`");
                mistakes.push(Mistake::new(place.at("resource"), message));
            }
            if limit.size.is_none() && limit.length.is_none() {
                mistakes.push(Mistake::new(place.clone(), "needs `size`, `length` or both"));
            }
            if limits.iter().any(|known| *known.media == *limit.media.0 && known.resource.as_deref() == resource) {
                mistakes.push(Mistake::new(place, "has the same media and resource as a limit above; write one"));
            }
            limits.push(UploadLimit {
                media: limit.media.0.as_str().into(),
                resource: resource.map(Box::from),
                size: limit.size.as_ref().map(|size| size_of(&size.0, section.kilobyte.0)),
                length: limit.length.as_ref().map(length_of),
            });
        }
        limits.sort_by_key(|limit| {
            let resource =
                limit.resource.as_deref().map_or(0, |name| if name.ends_with('*') { name.len() } else { usize::MAX });
            Reverse((resource, limit.media.contains('/')))
        });
        if mistakes.is_empty() { Ok(Self(limits)) } else { Err(mistakes) }
    }

    /// The limit that the upload exceeds in a call of `resource`, if there is one.
    pub fn check(&self, resource: &str, upload: &Upload<'_>) -> Result<Option<UploadTooLarge>, InvalidUpload> {
        let media = Media::parse(upload.media_type)?;
        let applicable = || {
            self.0.iter().filter(|limit| {
                media.is(&limit.media) && limit.resource.as_ref().is_none_or(|name| matches(name, resource))
            })
        };
        let above = |measure, has, limit: Option<&Maximum>| {
            let limit = limit.filter(|limit| has > limit.value)?.clone();
            Some(UploadTooLarge { kind: media.kind, measure, has, limit, resource: resource.to_owned() })
        };
        let size = applicable().find_map(|limit| limit.size.as_ref());
        let length = applicable().find_map(|limit| limit.length.as_ref());
        Ok(above(Measure::Size, upload.bytes, size).or_else(|| above(Measure::Length, upload.duration_seconds, length)))
    }
}

/// The media of an upload: its kind, and its media type where the call gave one.
struct Media<'a> {
    kind: &'static str,
    full: &'a str,
}

impl<'a> Media<'a> {
    fn parse(text: &'a str) -> Result<Self, InvalidUpload> {
        // Parameters such as `; codecs=opus` are ignored.
        let full = text.split(';').next().unwrap_or_default().trim();
        let (kind, subtype) = full.split_once('/').map_or((full, None), |(kind, subtype)| (kind, Some(subtype)));
        let is_token = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+-_!#$&^".contains(&byte))
        };
        let kinds = [("image", "image"), ("audio", "audio file"), ("video", "video file")];
        let known = kinds.into_iter().find(|(known, _)| kind.eq_ignore_ascii_case(known));
        match (known, subtype) {
            _ if full.len() > 128 || !is_token(kind) || subtype.is_some_and(|subtype| !is_token(subtype)) => {
                Err(InvalidUpload)
            }
            (Some((_, kind)), _) => Ok(Self { kind, full }),
            (None, Some(_)) => Ok(Self { kind: "file", full }),
            (None, None) => Err(InvalidUpload),
        }
    }

    /// Whether a limit of `media` applies to this one.
    fn is(&self, media: &str) -> bool {
        let kind = self.full.split('/').next().unwrap_or_default();
        media.eq_ignore_ascii_case(self.full) || media.eq_ignore_ascii_case(kind)
    }
}

impl fmt::Display for UploadTooLarge {
    /// The message names the limit: `The audio file has 20971521 bytes; aud2video takes at most 20 MB (20971520 bytes).`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, has, limit, resource, .. } = self;
        match self.measure {
            Measure::Size => {
                let Maximum { value, text } = limit;
                write!(f, "The {kind} has {has} bytes; {resource} takes at most {text} ({value} bytes).")
            }
            Measure::Length => {
                write!(f, "The {kind} lasts {has} seconds; {resource} takes at most {}.", limit.text)
            }
        }
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

/// The size that a text states; 0 for a text that the schema refuses.
fn size_of(text: &str, kilobyte: u64) -> Maximum {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(at);
    let power = match unit {
        "GB" => 3,
        "MB" => 2,
        "KB" => 1,
        _ => 0,
    };
    let value = count.parse::<u64>().unwrap_or(0).saturating_mul(kilobyte.pow(power));
    Maximum { value, text: format!("{count} {unit}").into() }
}

fn length_of(length: &Length) -> Maximum {
    let seconds = length.ms() / 1000;
    let minutes = seconds / 60;
    let text = if seconds.is_multiple_of(60) && minutes > 0 {
        format!("{minutes} minutes")
    } else {
        format!("{seconds} seconds")
    };
    Maximum { value: seconds, text: text.into() }
}

#[cfg(test)]
mod tests {
    use crate::format::{PolicyFile, Resource};

    use super::*;

    fn uploads(limits: &serde_json::Value) -> Uploads {
        let section = serde_json::from_value(serde_json::json!({ "limits": limits })).unwrap();
        let resources = ["aud2video", "aud2txt", "txt2img"].map(|name| (name.to_owned(), Resource::default()));
        let file = PolicyFile { resources: resources.into(), ..PolicyFile::default() };
        let policy = Policy::compile_in_part(&file).policy;
        Uploads::of(&section, &policy).unwrap()
    }

    fn check(uploads: &Uploads, resource: &str, media_type: &str, bytes: u64, seconds: u64) -> String {
        let upload = Upload { media_type, bytes, duration_seconds: seconds };
        match uploads.check(resource, &upload) {
            Ok(None) => "passes".to_owned(),
            Ok(Some(too_large)) => too_large.to_string(),
            Err(bad) => bad.to_string(),
        }
    }

    #[test]
    fn the_most_specific_limit_applies_to_each_measure() {
        let uploads = uploads(&serde_json::json!([
            { "media": "audio", "size": "10MB", "length": "600m" },
            { "media": "audio", "resource": "aud2*", "size": "15MB" },
            { "media": "audio", "resource": "aud2video", "size": "20MB" },
            { "media": "audio/wav", "size": "1KB" },
        ]));
        let mb = 1 << 20;
        assert_eq!(check(&uploads, "txt2img", "audio", 10 * mb, 36_000), "passes");
        assert_eq!(
            check(&uploads, "txt2img", "audio/mpeg; codecs=mp3", 10 * mb + 1, 0),
            "The audio file has 10485761 bytes; txt2img takes at most 10 MB (10485760 bytes)."
        );
        assert_eq!(check(&uploads, "aud2video", "Audio/OGG", 20 * mb, 0), "passes");
        assert!(check(&uploads, "aud2video", "audio", 20 * mb + 1, 0).contains("20 MB (20971520 bytes)"));
        assert_eq!(
            check(&uploads, "aud2video", "audio", 1, 36_001),
            "The audio file lasts 36001 seconds; aud2video takes at most 600 minutes."
        );
        assert_eq!(check(&uploads, "aud2txt", "audio", 15 * mb, 0), "passes");
        assert!(check(&uploads, "txt2img", "audio/wav", 1025, 0).contains("1 KB (1024 bytes)"));
        assert_eq!(check(&uploads, "txt2img", "video", u64::MAX, u64::MAX), "passes");
        assert_eq!(check(&uploads, "txt2img", "application/pdf", u64::MAX, 0), "passes");
    }

    #[test]
    fn media_types_are_checked() {
        for bad in ["", "pdf", "audio/", "/wav", "audio/a/b", "audio/\r\n", "aud\u{fc}o/x", &"a/".repeat(100)] {
            assert!(check(&Uploads::default(), "r", bad, 1, 0).starts_with("upload.media_type: "), "{bad}");
        }
    }
}
