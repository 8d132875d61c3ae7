package status

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	mostMessage = 1000     // bytes of a message; a note of an event may have 1,024
	mostRead    = 16 << 10 // bytes of a text that are looked at
)

// message is text as a condition and an event may have it.
func message(text string) string { return clip(clean(text), mostMessage) }

// clip shortens text to at most n bytes, at the end of a character.
func clip(text string, n int) string {
	if len(text) <= n {
		return text
	}
	const mark = "…"
	end := max(0, n-len(mark))
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + mark
}

var (
	userInfo = regexp.MustCompile(`(?i)([a-z][a-z0-9+.-]*://)([^/\s"'@]*)@(sha\d+:)?`)
	urlQuery = regexp.MustCompile(`(?i)([a-z][a-z0-9+.-]*://[^\s"'?]*\?)[^\s"']+`)
)

// clean is text on one line, without the credentials that URLs in it may hold:
// those of a user, and queries, where signed URLs have them. Reasons come from
// servers and proxies, which quote what they please.
func clean(text string) string {
	text = strings.ToValidUTF8(text[:min(mostRead, len(text))], "\uFFFD")
	text = userInfo.ReplaceAllStringFunc(text, func(match string) string {
		parts := userInfo.FindStringSubmatch(match)
		if strings.EqualFold(parts[1], "oci://") && parts[3] != "" {
			return match // an image and its digest
		}
		return parts[1] + "[redacted]@" + parts[3]
	})
	text = urlQuery.ReplaceAllString(text, "${1}[redacted]")
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r)
	}), " ")
}
