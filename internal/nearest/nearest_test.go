package nearest

import (
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	have := []string{"phase", "pluginConfig", "pluginName", "priority", "url"}
	for want, nearby := range map[string]string{
		"phse": "phase", "pahse": "phase", "PHASE": "phase", "plugin_config": "pluginConfig", "plugin-name": "pluginName",
		"prioritty": "priority", "uri": "url", "selector": "", "x": "", "": "", strings.Repeat("phase", 100): "",
	} {
		if got := Name(want, have); got != nearby {
			t.Errorf("Name(%q) = %q, want %q", want, got, nearby)
		}
	}
	if got := Name("a", nil); got != "" {
		t.Errorf("Name of none = %q", got)
	}
}
