//! Channel templates: literal text with `{dotted.path}` places for values.

/// A channel's name never has more bytes; what would be longer is no channel.
pub(super) const CHANNEL_BYTES_MAX: usize = 512;
/// Most channels that one document or one token is in through the templates of one list. Values in
/// arrays multiply, so there has to be an end; it is far above what a page can be merged over well.
pub(super) const CHANNELS_MAX: usize = 1_024;
/// Places of one template.
const PLACES_MAX: usize = 8;

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text that stands as it is.
    Text(String),
    /// The value at a path, by its field names; at least one.
    Place(Vec<String>),
}

/// A compiled template. Neighbouring parts are never both text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

/// Whether `text` is a template; the reason is to be read after the text.
///
/// # Errors
/// Unbalanced braces, an empty path, nothing at all.
pub fn check_template(text: &str) -> Result<(), String> {
    Template::parse(text).map(|_| ())
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(
                "is empty; write a channel, as \"everyone\" or \"user:{userId}\"".to_owned()
            );
        }
        if text.len() > CHANNEL_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(format!(
                "is longer than {CHANNEL_BYTES_MAX} bytes or holds a control character"
            ));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let open = rest.find('{').unwrap_or(rest.len());
            let (literal, after) = rest.split_at(open);
            if literal.contains('}') {
                return Err("has a } without its {".to_owned());
            }
            if !literal.is_empty() {
                parts.push(Part::Text(literal.to_owned()));
            }
            let Some(after) = after.strip_prefix('{') else { break };
            let (path, after) = after.split_once('}').ok_or("has a { without its }")?;
            parts.push(Part::Place(parse_path(path)?));
            rest = after;
        }
        if parts.iter().filter(|part| matches!(part, Part::Place(_))).count() > PLACES_MAX {
            return Err(format!("has more than {PLACES_MAX} places"));
        }
        Ok(Self(parts))
    }

    /// Every text that the template gives where `values_of` says which values stand at a path, added
    /// to `channels`, up to [`CHANNELS_MAX`] of them. A place without a value gives none.
    pub(super) fn expand(
        &self,
        mut values_of: impl FnMut(&[String]) -> Vec<String>,
        channels: &mut Vec<String>,
    ) {
        let mut texts = vec![String::new()];
        for part in &self.0 {
            match part {
                Part::Text(text) => texts.iter_mut().for_each(|so_far| so_far.push_str(text)),
                Part::Place(path) => {
                    let values = values_of(path);
                    let pairs = texts.iter().flat_map(|so_far| {
                        values.iter().map(move |value| format!("{so_far}{value}"))
                    });
                    texts = pairs.take(CHANNELS_MAX).collect();
                }
            }
        }
        let room = CHANNELS_MAX.saturating_sub(channels.len());
        channels
            .extend(texts.into_iter().filter(|text| text.len() <= CHANNEL_BYTES_MAX).take(room));
    }

    /// The top-level fields that it reads.
    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Place(path) => path.first().map(String::as_str),
        })
    }

    /// Whether some values would make the template give `channel`. Says yes rather than no where a
    /// value could hold the literal text too.
    pub(super) fn may_give(&self, channel: &str) -> bool {
        may_give(&self.0, channel)
    }
}

fn may_give(parts: &[Part], channel: &str) -> bool {
    match parts {
        [] => channel.is_empty(),
        [Part::Text(text), rest @ ..] => {
            channel.strip_prefix(text.as_str()).is_some_and(|channel| may_give(rest, channel))
        }
        // A value has at least one character.
        [Part::Place(_)] => !channel.is_empty(),
        [Part::Place(_), rest @ ..] => {
            channel.char_indices().skip(1).any(|(at, _)| may_give(rest, &channel[at..]))
        }
    }
}

fn parse_path(path: &str) -> Result<Vec<String>, String> {
    if path.split('.').any(|name| name.is_empty() || name.contains('{') || name.trim() != name) {
        return Err(format!(
            "has {{{path}}}, which is not a path; write {{field}} or {{field.inner}}"
        ));
    }
    Ok(path.split('.').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_places_are_told_apart() {
        let template = Template::parse("team:{a.b}:{c}!").unwrap();
        let path = |names: &[&str]| Part::Place(names.iter().map(ToString::to_string).collect());
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(
            template.0,
            [text("team:"), path(&["a", "b"]), text(":"), path(&["c"]), text("!")]
        );
    }

    #[test]
    fn what_is_not_a_template_is_refused() {
        for bad in
            ["", "user:{", "user:}", "user:{}", "{a.}", "{.a}", "{a{b}}", "{ a }", "a\nb", "{a}}"]
        {
            assert!(check_template(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_template_knows_which_channels_it_can_give() {
        let check = |template: &str, channel: &str, expected: bool| {
            let template = Template::parse(template).unwrap();
            assert_eq!(template.may_give(channel), expected, "{template:?} {channel}");
        };
        check("everyone", "everyone", true);
        check("everyone", "everyone2", false);
        check("user:{id}", "user:7", true);
        check("user:{id}", "user:", false);
        check("user:{id}", "role:7", false);
        check("{a}:{b}", "x:y", true);
        check("{a}:{b}", "x", false);
        check("{a}!", "ä!", true);
    }

    #[test]
    fn the_number_of_channels_has_an_end() {
        let template = Template::parse("{a}-{b}").unwrap();
        let mut channels = Vec::new();
        template.expand(|_| (0..1_000).map(|n| n.to_string()).collect(), &mut channels);
        assert_eq!(channels.len(), CHANNELS_MAX);
    }
}
