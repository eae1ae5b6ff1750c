"""Where pictures lie: folders, lists, archives and other machines."""
