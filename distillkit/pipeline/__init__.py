"""The stages of a run and what joins them: context, label, train, judge, report, plan."""
