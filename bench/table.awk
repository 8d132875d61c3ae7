# Makes a Markdown table of what go test -bench prints:
#
#	go test -run '^$' -bench . ./bench/... | awk -f bench/table.awk
#
# What is no result is passed on, and so is a failure.

/^pkg:/ { pkg = $2; next }
/^(goos|goarch|cpu):|^PASS|no test files/ { next }
/^Benchmark/ && NF > 3 {
	if (pkg != last)
		rows = rows sprintf("| **%s** | |\n", last = pkg)
	name = $1
	sub(/^Benchmark/, "", name)
	sub(/-[0-9]+$/, "", name) # of processors
	results = ""
	for (i = 3; i < NF; i += 2)
		results = results (results ? ", " : "") $i " " $(i + 1)
	rows = rows sprintf("| %-26s | %s |\n", name, results)
	next
}
/FAIL/ { failed = 1 }
{ print }
END {
	printf "\n| %-26s | results |\n|---|---|\n%s", "benchmark", rows
	exit failed
}
