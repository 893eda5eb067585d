// Opened as a file, a page may not read its neighbours, which excerpts of search results would need.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
