package admin

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Why a level is not set; in Envoy's words.
var (
	ErrLogger = errors.New("error: unknown logger name")
	ErrLevel  = errors.New("error: unknown logger level")

	errParameters  = errors.New("error: invalid number of parameters")
	errEmptyLogger = errors.New("error: empty logger name or empty logger level")
	errGroup       = errors.New("error: group parameter requires fine-grain logging to be enabled")
)

// Levels are the names of Envoy's levels, the lowest first.
func Levels() []string { return strings.Fields("trace debug info warning error critical off") }

func (s *Server) logging(w http.ResponseWriter, r *http.Request) {
	err := s.setLevels(r.URL.Query())
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		say(w, err.Error()+"\n\n"+`usage: /logging?<name>=<level> (change single level)
usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)
usage: /logging?level=<level> (change all levels)
usage: /logging?group=<group_name>:<level> (change group of loggers)
levels: `+strings.Join(Levels(), " ")+" \n")
	}
	loggers, _ := s.Source.Level("", "") // nothing is set
	say(w, "active loggers:\n")
	for _, name := range slices.Sorted(maps.Keys(loggers)) {
		say(w, "  "+name+": "+loggers[name]+"\n")
	}
	if err == nil {
		say(w, "\n")
	}
}

// setLevels sets what the parameters say. Nothing is set if any of it is wrong.
func (s *Server) setLevels(q map[string][]string) error {
	if len(q) > 1 {
		return errParameters
	}
	for name, values := range q {
		value := values[0]
		switch name {
		case "group":
			return errGroup
		case "paths":
			return s.setEach(value)
		case "level":
			name = ""
		}
		return s.setLevel(name, value)
	}
	return nil
}

// setEach sets the levels of a list of NAME:LEVEL.
func (s *Server) setEach(list string) error {
	levels := map[string]string{}
	for entry := range strings.SplitSeq(list, ",") {
		name, level, _ := strings.Cut(entry, ":")
		switch {
		case list == "":
			return nil
		case name == "" || level == "":
			return errEmptyLogger
		case !slices.Contains(Levels(), level):
			return ErrLevel
		}
		if err := s.check(name); err != nil {
			return err
		}
		levels[name] = level
	}
	for name, level := range levels {
		if err := s.setLevel(name, level); err != nil {
			return err
		}
	}
	return nil
}

// check refuses the name of a logger that there is not.
func (s *Server) check(name string) error {
	_, err := s.Source.Level(name, "")
	return err
}

func (s *Server) setLevel(name, level string) error {
	if level != "" && !slices.Contains(Levels(), level) {
		return ErrLevel
	}
	_, err := s.Source.Level(name, level)
	return err
}
